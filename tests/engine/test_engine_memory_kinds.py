"""Reuse of prefixes with sliding windows and recurrent states, which cannot be truncated everywhere.

The models have random weights and distinct logits, so an inexact prefix changes the text at once. Exact
prefixes give equal texts, except at near ties.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from app.engine.async_engine import AsyncEngine
from app.engine.engine import EngineOptions
from app.engine.llama import Batch, Context, Model
from app.engine.sampling.params import SamplingParams
from tests.engine.conftest import Reports
from tests.tiny_models import Kind, TinyModel

pytestmark = pytest.mark.anyio

KINDS = ["sliding-window", "recurrent", "hybrid"]
# Maximum difference of the logits where texts differ. Rounding changes logits by at most 0.07.
NEAR_TIE = 0.15


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


@asynccontextmanager
async def engine_of(
    model: Model, *, lock: threading.Lock | None = None, **options: Any
) -> AsyncIterator[AsyncEngine]:
    defaults = {"n_ctx": 4096, "max_sequences": 4, "n_threads": 1}
    engine = AsyncEngine(model, EngineOptions(**(defaults | options)), compute_lock=lock)
    engine._observer = Reports()
    engine.start()
    try:
        yield engine
    finally:
        await engine.close()
        model.close()


def n_prefilled(engine: AsyncEngine) -> int:
    assert isinstance(engine._observer, Reports)
    return engine._observer.prompt_tokens


async def generate(engine: AsyncEngine, tokens: list[int], n: int = 12) -> tuple[list[int], int]:
    answer = engine.submit(tokens, SamplingParams(temperature=0, max_tokens=n, ignore_eos=True))
    return [output.token async for output in answer], answer.n_cached


def logits_after(model: Model, text: list[int]) -> np.ndarray[Any, Any]:
    context = Context(model, n_ctx=2048, n_sequences=1, n_batch=2048, n_threads=1)
    batch = Batch(2048)
    batch.add(text, 0, 0, n_outputs=1)
    context.decode(batch)
    logits = context.logits[0].copy()
    context.close()
    return logits


def assert_likeliest(model: Model, prompt: list[int], answer: list[int]) -> None:
    """Fail unless each token is the likeliest one, or nearly so, after a prefill of the whole text."""
    forbidden = list(model.vocab.end_of_generation)
    for position, token in enumerate(answer):
        logits = logits_after(model, prompt + answer[:position])
        logits[forbidden] = -np.inf
        gap = float(logits.max() - logits[token])
        assert gap < NEAR_TIE, f"token {position} has a logit {gap} below the highest"


def text(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(100, 40_000, n).tolist()


async def test_a_continued_text_uses_the_cache(tiny_model: TinyModel, kind: Kind) -> None:
    model = Model(tiny_model(kind))
    async with engine_of(model) as engine:
        first = text(150, 1)
        answer, _ = await generate(engine, first)
        following = [*first, *answer, *text(10, 2)]
        second, n_cached = await generate(engine, following)
        assert n_cached >= 161
        assert_likeliest(model, following, second)


@pytest.mark.slow
async def test_a_text_that_diverges_from_a_cached_one_is_exact(tiny_model: TinyModel, kind: Kind) -> None:
    """The prefix is in a slot, in RAM or in another slot, and is truncated at several places."""
    model = Model(tiny_model(kind))
    async with engine_of(model) as engine:
        prefix = text(150, 1)
        for seed in (2, 3, 4):
            prompt = [*prefix, *text(20, seed)]
            answer, _ = await generate(engine, prompt)
            assert_likeliest(model, prompt, answer)
        # This evicts all texts to RAM.
        await asyncio.gather(*(generate(engine, text(60, seed)) for seed in range(10, 14)))
        for length in (150, 149, 120, 40):
            prompt = [*prefix[:length], *text(20, length)]
            answer, _ = await generate(engine, prompt)
            assert_likeliest(model, prompt, answer)


@pytest.mark.slow
async def test_concurrent_requests_prefill_a_shared_prefix_once(tiny_model: TinyModel, kind: Kind) -> None:
    model = Model(tiny_model(kind))
    lock = threading.Lock()
    async with engine_of(model, lock=lock) as engine:
        with lock:  # until all requests are in the queue
            first = asyncio.ensure_future(generate(engine, [1]))
            await asyncio.sleep(0)
            prompts = [[*text(200, 1), *text(10, seed)] for seed in range(2, 10)]
            requests = [asyncio.ensure_future(generate(engine, prompt)) for prompt in prompts]
            await asyncio.sleep(0)
        await first
        answers = await asyncio.gather(*requests)
        for prompt, (answer, _) in zip(prompts, answers, strict=True):
            assert_likeliest(model, prompt, answer)
        assert n_prefilled(engine) == 1 + 200 + 8 * 10


async def test_a_warm_context_is_cached_for_all_requests(tiny_model: TinyModel, kind: Kind) -> None:
    model = Model(tiny_model(kind))
    async with engine_of(model) as engine:
        context = text(100, 1)
        await engine.warm(context)
        for seed in (2, 3):
            prompt = [*context, *text(15, seed)]
            answer, n_cached = await generate(engine, prompt)
            assert n_cached == 100
            assert_likeliest(model, prompt, answer)


@pytest.mark.slow
async def test_only_the_sliding_window_uses_drafts(tiny_model: TinyModel, kind: Kind) -> None:
    model = Model(tiny_model(kind))
    async with engine_of(model, speculation=True) as engine:
        prompt = text(12, 1) * 8
        answer, _ = await generate(engine, prompt, n=40)
        assert_likeliest(model, prompt, answer)
        assert isinstance(engine._observer, Reports)
        n_drafted = sum(report.draft_tokens for report in engine._observer.all)
        assert (n_drafted > 0) == (kind == "sliding-window")


def test_a_restored_window_cannot_be_truncated(tiny_model: TinyModel) -> None:
    model = Model(tiny_model("sliding-window"))
    context = Context(model, n_ctx=2048, n_sequences=2, n_batch=512, n_threads=1)
    batch = Batch(512)
    batch.add(text(400, 1), 0, 0, n_outputs=1)
    context.decode(batch)
    assert context.can_truncate(0, 300), "the context has all cells"
    assert context.restore_sequence(1, context.save_sequence(0))
    assert not context.can_truncate(1, 300)
    with pytest.raises(ValueError, match="cannot be truncated"):
        context.truncate_sequence(1, 300)
    assert context.can_truncate(1, 400)
    context.close()
    model.close()
