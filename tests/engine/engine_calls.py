"""Requests to an engine, and checks of its state after them."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio

from app.engine.answer import Answer, Output
from app.engine.async_engine import AsyncEngine
from app.engine.sampling.params import SamplingParams
from app.engine.sequence import FinishReason
from tests.engine.conftest import Reports

NEAR_TIE = 0.5  # difference of log-probabilities that rounding can reverse
LONG = "Write a long story about a lighthouse keeper and the sea."


def chat(engine: AsyncEngine, text: str) -> list[int]:
    prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return engine.vocab.tokenize(prompt, parse_special=True)


def submit(engine: AsyncEngine, text: str, **params: Any) -> Answer:
    defaults: dict[str, Any] = {"temperature": 0.0, "max_tokens": 32}
    return engine.submit(chat(engine, text), SamplingParams(**(defaults | params)))


async def read(answer: Answer) -> tuple[str, int, FinishReason | None]:
    outputs = [output async for output in answer]
    return "".join(o.text for o in outputs), len(outputs), outputs[-1].finish_reason


async def generate(engine: AsyncEngine, text: str, **params: Any) -> tuple[str, int, FinishReason | None]:
    return await read(submit(engine, text, **params))


async def generate_cached(
    engine: AsyncEngine, text: str, **params: Any
) -> tuple[str, int, FinishReason | None]:
    """Generate with the prompt in the prefix cache. Such requests have equal batches and equal rounding."""
    await generate(engine, text, max_tokens=1)
    return await generate(engine, text, **params)


async def outputs_of(engine: AsyncEngine, text: str, **params: Any) -> list[Output]:
    return [output async for output in submit(engine, text, **params)]


def assert_equal_up_to_near_ties(alone: list[Output], others: list[Output]) -> None:
    """Fail unless answers are equal, or first differ at two tokens of nearly equal probability.

    Batches of other shapes round differently. ``alone`` needs log-probabilities.
    """
    for output, other in zip(alone, others, strict=False):
        if output.token != other.token:
            assert output.logprobs is not None
            assert output.logprobs.chosen - dict(output.logprobs.top)[other.token] < NEAR_TIE
            return
    assert len(alone) == len(others)


def assert_nothing_runs(engine: AsyncEngine) -> None:
    """Fail unless the engine has no request, and KV memory holds only states of the prefix cache."""
    assert engine._answers == {}
    assert engine._core._scheduler.running == []
    assert engine._core._scheduler.n_waiting == 0
    cached = {r.slot: len(r.tokens) for r in engine._core._cache._residents.values() if r.sequence is None}
    assert {slot: cached.get(slot, 0) for slot in range(4)} == {
        slot: engine._core._context.sequence_length(slot) for slot in range(4)
    }


async def until_idle(reports: Reports) -> None:
    """Wait until a report has no running and no waiting request."""
    with anyio.fail_after(120):
        while not reports.all or reports.all[-1].running or reports.all[-1].waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
