"""Samplers with logits of the default model."""

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
    """A context with the logits after the prompt."""
    context = Context(model, n_ctx=256, n_sequences=1, n_batch=64, n_threads=1)
    batch = Batch(64)
    batch.add(model.vocab.tokenize(PROMPT, parse_special=False), 0, 0, n_outputs=1)
    context.decode(batch)
    yield context
    context.close()


def samples(model: Model, context: Context, n: int = 16, **params: object) -> list[int]:
    """Tokens that one sampler samples from the same logits."""
    sampler = make_sampler(SamplingParams(**params), model.vocab, [1])  # type: ignore[arg-type]
    tokens = [sampler.sample(context, 0) for _ in range(n)]
    sampler.close()
    return tokens


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, -1, 2**32, 2**63 - 1])
def test_equal_seeds_give_equal_samples(model: Model, context: Context, seed: int) -> None:
    first = samples(model, context, temperature=1.5, seed=seed)
    assert first == samples(model, context, temperature=1.5, seed=seed)
    assert first == samples(model, context, temperature=1.5, seed=seed % 2**32)
    assert first != samples(model, context, temperature=1.5, seed=seed + 1)


def test_without_a_seed_samples_differ(model: Model, context: Context) -> None:
    assert len({tuple(samples(model, context, temperature=1.5)) for _ in range(3)}) == 3


def typical(logits: np.ndarray, p: float) -> set[int]:
    """The locally typical set (Meister et al. 2022)."""
    wide = logits.astype(np.float64)
    logprobs = wide - np.logaddexp.reduce(wide)
    probs = np.exp(logprobs)
    surprise = np.where(probs > 0, -logprobs, 0)
    order = np.argsort(np.abs(surprise - (probs * surprise).sum()) + np.where(probs > 0, 0, np.inf))
    n_kept = int(np.searchsorted(np.cumsum(probs[order]), p)) + 1
    return set(order[: n_kept + 1].tolist())  # plus one token for rounding


@pytest.mark.parametrize("likely", [0.0, 200.0])
def test_typical_p_excludes_forbidden_tokens(model: Model, context: Context, likely: float) -> None:
    """Tokens of probability 0 have a bias of minus infinity, or another token has a bias of 200."""
    logits = context.logits[0].copy()
    forbidden = [*model.vocab.end_of_generation, int(logits.argmax())]
    bias = dict.fromkeys(forbidden, -math.inf) | {7: likely}
    for token, value in bias.items():
        logits[token] += value
    kept = typical(logits, 0.2)
    if not likely:
        assert int(logits.argmax()) not in kept, "the likeliest token is not typical"
    sampled = set(samples(model, context, 200, logit_bias=bias, typical_p=0.2, seed=1))
    assert sampled <= kept
