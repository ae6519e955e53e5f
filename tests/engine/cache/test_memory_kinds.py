"""The engine over models whose memory cannot be truncated everywhere: sliding windows, recurrent states.

Their weights are random and their logits far apart: a prefix reused where it is not exact gives another
text at once. Texts reused rightly are the same, near-ties aside.
"""

from __future__ import annotations

import asyncio
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
# Of the two tokens' logits where texts part. Rounding moves these models' logits by at most 0.07.
NEAR_TIE = 0.15


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


@asynccontextmanager
async def engine_of(model: Model, **options: Any) -> AsyncIterator[AsyncEngine]:
    defaults = {"n_ctx": 4096, "max_sequences": 4, "n_threads": 2}
    engine = AsyncEngine(model, EngineOptions(**(defaults | options)))
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


async def ask(engine: AsyncEngine, tokens: list[int], n: int = 12) -> tuple[list[int], int]:
    answer = engine.submit(tokens, SamplingParams(temperature=0, max_tokens=n, ignore_eos=True))
    return [output.token async for output in answer], answer.n_cached


def logits_after(model: Model, text: list[int]) -> np.ndarray[Any, Any]:
    context = Context(model, n_ctx=2048, n_sequences=1, n_batch=2048, n_threads=2)
    batch = Batch(2048)
    batch.add(text, 0, 0, n_outputs=1)
    context.decode(batch)
    logits = context.logits[0].copy()
    context.close()
    return logits


def assert_right(model: Model, prompt: list[int], answer: list[int]) -> None:
    """Every token is the likeliest after a prompt computed whole, or nearly as likely."""
    forbidden = list(model.vocab.end_of_generation)
    for at, token in enumerate(answer):
        logits = logits_after(model, prompt + answer[:at])
        logits[forbidden] = -np.inf
        behind = float(logits.max() - logits[token])
        assert behind < NEAR_TIE, f"token {at} is behind the likeliest by {behind}"


def text(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(100, 40_000, n).tolist()


async def test_a_text_that_goes_on_is_continued(tiny_model: TinyModel, kind: Kind) -> None:
    model = Model(tiny_model(kind))
    async with engine_of(model) as engine:
        first = text(150, 1)
        answer, _ = await ask(engine, first)
        following = [*first, *answer, *text(10, 2)]
        second, n_cached = await ask(engine, following)
        assert n_cached >= 161
        assert_right(model, following, second)


async def test_a_text_that_parts_from_a_known_one_is_right(tiny_model: TinyModel, kind: Kind) -> None:
    """Reused where that is exact, computed where it is not: from the slot, from RAM, and from others."""
    model = Model(tiny_model(kind))
    async with engine_of(model) as engine:
        prefix = text(150, 1)
        for seed in (2, 3, 4):
            prompt = [*prefix, *text(20, seed)]
            answer, _ = await ask(engine, prompt)
            assert_right(model, prompt, answer)
        await asyncio.gather(*(ask(engine, text(60, seed)) for seed in range(10, 14)))  # all to RAM
        for cut in (150, 149, 120, 40):
            prompt = [*prefix[:cut], *text(20, cut)]
            answer, _ = await ask(engine, prompt)
            assert_right(model, prompt, answer)


async def test_those_who_come_together_share_their_prefix(tiny_model: TinyModel, kind: Kind) -> None:
    model = Model(tiny_model(kind))
    async with engine_of(model) as engine:
        prompts = [[*text(200, 1), *text(10, seed)] for seed in range(2, 10)]
        answers = await asyncio.gather(*(ask(engine, prompt) for prompt in prompts))
        for prompt, (answer, _) in zip(prompts, answers, strict=True):
            assert_right(model, prompt, answer)
        assert n_prefilled(engine) == 200 + 8 * 10


async def test_a_context_serves_all_that_begin_with_it(tiny_model: TinyModel, kind: Kind) -> None:
    model = Model(tiny_model(kind))
    async with engine_of(model) as engine:
        context = text(100, 1)
        await engine.warm(context)
        for seed in (2, 3):
            prompt = [*context, *text(15, seed)]
            answer, n_cached = await ask(engine, prompt)
            assert n_cached == 100
            assert_right(model, prompt, answer)


async def test_drafts_are_verified_or_left_off(tiny_model: TinyModel, kind: Kind) -> None:
    model = Model(tiny_model(kind))
    async with engine_of(model, speculation=True) as engine:
        prompt = text(12, 1) * 8
        answer, _ = await ask(engine, prompt, n=40)
        assert_right(model, prompt, answer)
        assert isinstance(engine._observer, Reports)
        n_drafted = sum(report.draft_tokens for report in engine._observer.all)
        assert (n_drafted > 0) == (kind == "sliding-window")


def test_a_saved_window_is_not_cut(tiny_model: TinyModel) -> None:
    model = Model(tiny_model("sliding-window"))
    context = Context(model, n_ctx=2048, n_sequences=2, n_batch=512, n_threads=2)
    batch = Batch(512)
    batch.add(text(400, 1), 0, 0, n_outputs=1)
    context.decode(batch)
    assert context.can_truncate(0, 300), "all is there yet"
    assert context.restore_sequence(1, context.save_sequence(0))
    assert not context.can_truncate(1, 300)
    with pytest.raises(ValueError, match="cannot be truncated"):
        context.truncate_sequence(1, 300)
    assert context.can_truncate(1, 400)
    context.close()
    model.close()
