"""Samplers over the logits of the real model."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from app.engine.llama import Batch, Context, Model
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.samplers import make_sampler

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def context(model: Model) -> Iterator[Context]:
    """One row of logits, behind the prompt."""
    context = Context(model, n_ctx=256, n_sequences=1, n_batch=64, n_threads=2)
    batch = Batch(64)
    batch.add(model.vocab.tokenize(PROMPT, parse_special=False), 0, 0, n_outputs=1)
    context.decode(batch)
    yield context
    context.close()


def draws(model: Model, context: Context, n: int = 16, **params: object) -> list[int]:
    """Tokens that one sampler draws from the same row."""
    sampler = make_sampler(SamplingParams(**params), model.vocab, [1])  # type: ignore[arg-type]
    tokens = [sampler.sample(context, 0) for _ in range(n)]
    sampler.close()
    return tokens


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, -1, 2**32, 2**63 - 1])
def test_equal_seeds_give_equal_draws(model: Model, context: Context, seed: int) -> None:
    first = draws(model, context, temperature=1.5, seed=seed)
    assert first == draws(model, context, temperature=1.5, seed=seed)
    assert first == draws(model, context, temperature=1.5, seed=seed % 2**32)
    assert first != draws(model, context, temperature=1.5, seed=seed + 1)


def test_without_a_seed_draws_differ(model: Model, context: Context) -> None:
    assert len({tuple(draws(model, context, temperature=1.5)) for _ in range(3)}) == 3


def typical(logits: np.ndarray, p: float) -> set[int]:
    """The locally typical set (Meister et al. 2022)."""
    wide = logits.astype(np.float64)
    logprobs = wide - np.logaddexp.reduce(wide)
    probs = np.exp(logprobs)
    surprise = np.where(probs > 0, -logprobs, 0)
    order = np.argsort(np.abs(surprise - (probs * surprise).sum()) + np.where(probs > 0, 0, np.inf))
    n_kept = int(np.searchsorted(np.cumsum(probs[order]), p)) + 1
    return set(order[: n_kept + 1].tolist())  # one more, for rounding


@pytest.mark.parametrize("likely", [0.0, 200.0])
def test_typical_p_leaves_forbidden_tokens_out(model: Model, context: Context, likely: float) -> None:
    """Of probability 0 are tokens with a bias of minus infinity, and all others beside one of 200."""
    logits = context.logits[0].copy()
    forbidden = [*model.vocab.end_of_generation, int(logits.argmax())]
    bias = dict.fromkeys(forbidden, -math.inf) | {7: likely}
    for token, value in bias.items():
        logits[token] += value
    kept = typical(logits, 0.2)
    if not likely:
        assert int(logits.argmax()) not in kept, "the most likely token is not a typical one"
    drawn = set(draws(model, context, 200, logit_bias=bias, typical_p=0.2, seed=1))
    assert drawn <= kept
