"""native/sampling.cpp: its distributions are those of llama.cpp's sampler chain."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest

from app.engine.llama import Logits, NoTokenError, Sampler, mask_logits, top_tokens

LEAST_WIDTH = 1e-6
TOLERANCE = 3e-6  # llama.cpp sums in single precision
N_TOKENS = 600  # not a multiple of a vector's width

PROMPT = [5, 6, 5, 7, 8]
ANSWER = [9, 5, 9, 9]


def distribution(choose: Callable[[float], int]) -> dict[int, float]:
    """Probabilities of tokens: the widths of their intervals in the cumulative distribution."""
    widths: dict[int, float] = {}
    ends = [(place, choose(place)) for place in (0.0, math.nextafter(1, 0))]
    pending = [(*ends[0], *ends[1])]
    while pending:
        low, first, high, last = pending.pop()
        if first == last or high - low < LEAST_WIDTH:
            for token in (first, last):
                widths[token] = widths.get(token, 0) + (high - low) / 2
        else:
            middle = (low + high) / 2
            token = choose(middle)
            pending += [(low, first, middle, token), (middle, token, high, last)]
    return widths


def ours(logits: Logits, params: Mapping[str, Any]) -> dict[int, float]:
    def choose(place: float) -> int:
        sampler = Sampler(prompt=PROMPT, **{"temperature": 1.0, **params})
        for token in ANSWER:
            only = np.full_like(logits, -np.inf)
            only[token] = 0
            assert sampler.sample(only, 0.5) == token
        before = logits.copy()
        chosen = sampler.sample(logits, place)
        assert np.array_equal(before, logits), "the logits are restored"
        sampler.close()
        return chosen

    return distribution(choose)


def of_llama_cpp(logits: Logits, params: Mapping[str, Any]) -> dict[int, float]:
    """The same by a chain of llama.cpp's samplers."""
    n = len(logits)
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

    def add(name: str, *arguments: Any, seen: list[int] | None = None) -> None:
        sampler = getattr(lib, f"llama_sampler_init_{name}")(*arguments)
        for token in seen or []:
            lib.llama_sampler_accept(sampler, token)
        lib.llama_sampler_chain_add(chain, sampler)

    bias = params.get("bias", {})
    native_bias = (lib.llama_logit_bias * len(bias))(*(lib.llama_logit_bias(*item) for item in bias.items()))
    add("logit_bias", n, len(bias), native_bias)
    last_n = params.get("repeat_last_n", 0)
    add("penalties", n, last_n, params.get("repetition_penalty", 1.0), 0, 0, seen=PROMPT + ANSWER)
    penalties = (params.get("frequency_penalty", 0.0), params.get("presence_penalty", 0.0))
    add("penalties", n, 100, 1.0, *penalties, seen=ANSWER)
    add("min_p", 1e-30, 1)  # typical_p computes p·log p, which is NaN for p = 0
    add("top_k", params.get("top_k", 0))
    add("typical", params.get("typical_p", 1.0), 1)
    add("top_p", params.get("top_p", 1.0), 1)
    add("min_p", params.get("min_p", 0.0), 1)
    add("temp", params.get("temperature", 1.0))
    data = (lib.llama_token_data * n)(*(lib.llama_token_data(t, x, 0) for t, x in enumerate(logits.tolist())))
    array = lib.llama_token_data_array(ctypes.cast(data, ctypes.POINTER(lib.llama_token_data)), n, -1, False)
    lib.llama_sampler_apply(chain, ctypes.byref(array))
    kept = {array.data[i].id: array.data[i].logit for i in range(array.size)}
    lib.llama_sampler_free(chain)
    scaled = np.array([*kept.values()], np.float64)
    return dict(zip(kept, np.exp(scaled - np.logaddexp.reduce(scaled)).tolist(), strict=True))


CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 1.7},
    "top_k": {"top_k": 17},
    "large top_k": {"top_k": 200},
    "top_k of all": {"top_k": 5000},
    "top_p": {"top_p": 0.9, "temperature": 0.7},
    "small top_p": {"top_p": 0.01},
    "min_p": {"min_p": 0.02, "temperature": 1.5},
    "typical_p": {"typical_p": 0.6},
    "large typical_p": {"typical_p": 0.97},
    "all": {"top_k": 60, "typical_p": 0.9, "top_p": 0.9, "min_p": 0.01, "temperature": 0.8},
    "typical_p and others": {"typical_p": 0.9, "top_p": 0.9, "min_p": 0.1},
    "repetition": {"repetition_penalty": 1.3, "repeat_last_n": 6, "top_p": 0.95},
    "repetition in nothing": {"repetition_penalty": 1.3, "top_p": 0.95},
    "presence and frequency": {"presence_penalty": 0.7, "frequency_penalty": -0.4, "top_k": 50},
    "bias": {"bias": {5: 3.0, 6: -math.inf, 580: 40.0}, "min_p": 1e-20, "repetition_penalty": 1.1},
    "bias and typical_p": {"bias": {5: 3.0, 6: -math.inf}, "typical_p": 0.7},
}
SPREADS = {"peaked": 4.0, "flat": 0.5}


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize("params", CASES.values(), ids=CASES)
@pytest.mark.slow
def test_the_distribution_is_that_of_llama_cpp(params: dict[str, Any], spread: float) -> None:
    """The same tokens can be chosen, with the same probabilities."""
    logits = np.random.default_rng(3).normal(0, spread, N_TOKENS).astype(np.float32)
    logits[[11, 12, 599]] = -np.inf  # as by a grammar
    found, expected = ours(logits, params), of_llama_cpp(logits, params)
    # Rarer ones can lie between the probed places.
    assert {t for t, p in expected.items() if p > 2 * LEAST_WIDTH} <= found.keys() <= expected.keys()
    for token, probability in expected.items():
        assert found.get(token, 0) == pytest.approx(probability, abs=TOLERANCE)


@pytest.mark.parametrize("params", [{}, {"top_k": 3}, {"top_p": 0.6}, {"typical_p": 0.6}, {"min_p": 0.9}])
@pytest.mark.slow
def test_equal_logits_are_equally_likely(params: dict[str, Any]) -> None:
    found = ours(np.zeros(N_TOKENS, np.float32), params)
    n_kept = {"top_k": 3, "top_p": 360, "typical_p": 360}.get(next(iter(params), ""), N_TOKENS)
    assert abs(len(found) - n_kept) <= 1
    assert [*found.values()] == pytest.approx([1 / n_kept] * len(found), rel=5e-3)


def test_the_first_of_the_highest_logits_is_chosen_at_temperature_0() -> None:
    logits = np.random.default_rng(1).normal(size=3000).astype(np.float32)
    logits[[1700, 2999]] = 9
    sampler = Sampler(temperature=0)
    assert sampler.sample(logits, 0.9) == 1700
    sampler.close()


@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 1}, {"temperature": 1, "top_p": 0.5}])
@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_without_a_finite_logit_sampling_fails(params: dict[str, Any], value: float) -> None:
    sampler = Sampler(**params)
    with pytest.raises(NoTokenError):
        sampler.sample(np.full(700, value, np.float32), 0.5)
    sampler.close()


@pytest.mark.parametrize("n", [1, 32, 63, 1000])
def test_a_mask_forbids_tokens(n: int) -> None:
    allowed = np.random.default_rng(n).random(-(-n // 32) * 32) < 0.5
    allowed[:32] = n == 63  # a word of equal bits
    logits = np.arange(n, dtype=np.float32)
    mask_logits(logits, np.packbits(allowed, bitorder="little").tobytes())
    assert np.array_equal(logits, np.where(allowed[:n], np.arange(n), -np.inf))
    with pytest.raises(ValueError, match="does not fit"):
        mask_logits(logits, b"")


def test_top_tokens_of_a_large_vocabulary() -> None:
    logits = np.random.default_rng(1).normal(0, 8, 151_936).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    for n_top in (0, 1, 20, 200, 6000):
        log_sum, tokens = top_tokens(logits, n_top)
        assert tokens == order[:n_top].tolist()
        assert log_sum == pytest.approx(np.logaddexp.reduce(logits.astype(np.float64)), abs=1e-5)
