"""Log-probabilities of answers and prompts."""

from __future__ import annotations

import numpy as np
import pytest

from app.engine.async_engine import AsyncEngine
from app.engine.llama import Batch, Context, Model
from app.engine.sampling.logprobs import logprobs_of
from app.engine.sampling.params import SamplingParams

TOLERANCE = 1e-4


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.logaddexp.reduce(wide)


def test_logprobs_are_the_log_softmax() -> None:
    logits = np.random.default_rng(1).normal(0, 8, 50_000).astype(np.float32)
    exact = log_softmax(logits)
    order = np.argsort(-logits, kind="stable")
    found = logprobs_of(logits, 123, 5)
    assert found.chosen == pytest.approx(exact[123], abs=TOLERANCE)
    assert [token for token, _ in found.top] == order[:5].tolist()
    assert [value for _, value in found.top] == pytest.approx(exact[order[:5]].tolist(), abs=TOLERANCE)


def test_equal_logits_are_ordered_by_token_and_top_is_limited() -> None:
    logits = np.array([1, 3, 3, -np.inf], np.float32)
    assert [token for token, _ in logprobs_of(logits, 0, 3).top] == [1, 2, 0]
    assert len(logprobs_of(logits, 0, 99).top) == 4
    assert logprobs_of(logits, 0, 0).top == ()


class Reference:
    """A llama.cpp context with one sequence, decoded in given steps."""

    def __init__(self, model: Model) -> None:
        self._context = Context(model, n_ctx=512, n_sequences=1, n_batch=512, n_threads=1, n_outputs=32)
        self._batch = Batch(512)
        self._n_tokens = 0

    def decode(self, tokens: list[int], n_outputs: int) -> np.ndarray:
        self._batch.clear()
        self._batch.add(tokens, self._n_tokens, 0, n_outputs=n_outputs)
        self._n_tokens += len(tokens)
        self._context.decode(self._batch)
        return self._context.logits.copy()

    def close(self) -> None:
        self._context.close()


@pytest.mark.anyio
async def test_logprobs_of_an_answer_are_those_of_the_raw_logits(engine: AsyncEngine, model: Model) -> None:
    """Bias and penalties change the choice of tokens, not the log-probabilities."""
    prompt = model.vocab.tokenize("The capital of France is", parse_special=False)
    likeliest = model.vocab.tokenize(" Paris", parse_special=False)[0]
    params = SamplingParams(
        max_tokens=6, temperature=0, repetition_penalty=1.3, logit_bias={likeliest: -100}, logprobs=3
    )
    outputs = [output async for output in engine.submit(prompt, params)]
    reference = Reference(model)
    try:
        logits = reference.decode(prompt, 1)[0]
        for output in outputs:
            exact = log_softmax(logits)
            assert output.logprobs is not None
            assert output.logprobs.chosen == pytest.approx(exact[output.token], abs=TOLERANCE)
            assert [t for t, _ in output.logprobs.top] == np.argsort(-exact, kind="stable")[:3].tolist()
            logits = reference.decode([output.token], 1)[0]
    finally:
        reference.close()
    assert outputs[0].token != likeliest
    assert outputs[0].logprobs is not None
    assert outputs[0].logprobs.top[0][0] == likeliest


@pytest.mark.anyio
@pytest.mark.parametrize("max_tokens", [0, 3])
async def test_a_prompt_has_logprobs_of_every_token_but_the_first(
    max_tokens: int, engine: AsyncEngine, model: Model
) -> None:
    prompt = model.vocab.tokenize("Roses are red, violets are blue. " * 9, parse_special=False)
    greedy = SamplingParams(max_tokens=1, temperature=0)
    _ = [output async for output in engine.submit(prompt, greedy)]  # now the prefix is cached
    params = SamplingParams(max_tokens=max_tokens, temperature=0, prompt_logprobs=2)
    answer = engine.submit(prompt, params)
    assert len([output async for output in answer]) == max_tokens
    found = answer.prompt_logprobs
    assert answer.n_cached == 0, "cached tokens have no logits"
    assert len(found) == len(prompt) - 1
    # A step computes logits of 17 tokens of one prompt.
    reference = Reference(model)
    try:
        chunks = [prompt[i : i + 17] for i in range(0, len(prompt), 17)]
        exact = np.concatenate([reference.decode(chunk, len(chunk)) for chunk in chunks])
    finally:
        reference.close()
    for row, (token, logprobs) in enumerate(zip(prompt[1:], found, strict=True)):
        assert logprobs.chosen == pytest.approx(log_softmax(exact[row])[token], abs=TOLERANCE)
        assert len(logprobs.top) == 2


@pytest.mark.anyio
async def test_prompts_with_logprobs_run_beside_others(engine: AsyncEngine, model: Model) -> None:
    prompt = model.vocab.tokenize("Roses are red, violets are blue. " * 6, parse_special=False)
    streams = [
        engine.submit(prompt[i:], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))
        for i in range(3)
    ]
    scored = [
        engine.submit(prompt[i:], SamplingParams(max_tokens=2, temperature=0, prompt_logprobs=0))
        for i in range(3)
    ]
    for answer in streams:
        assert len([output async for output in answer]) == 20
    for i, answer in enumerate(scored):
        _ = [output async for output in answer]
        assert len(answer.prompt_logprobs) == len(prompt) - i - 1
    assert engine.n_unfinished == 0
