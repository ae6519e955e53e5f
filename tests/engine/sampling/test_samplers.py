"""Samplers with logits of the default model."""

from __future__ import annotations

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
    tokens = [sampler.sample(context.logits[0]) for _ in range(n)]
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


def test_draws_have_the_probabilities_of_the_model(model: Model, context: Context) -> None:
    logits = context.logits[0].astype(np.float64) / 0.9
    probabilities = np.exp(logits - np.logaddexp.reduce(logits))
    n = 3000
    counts = np.bincount(samples(model, context, n, temperature=0.9, seed=1), minlength=len(logits))
    likely = np.argsort(-probabilities)[:20]
    deviations = np.sqrt(n * probabilities * (1 - probabilities))[likely]
    assert (np.abs(counts - n * probabilities)[likely] < 5 * deviations + 1).all()
