"""Requests to an engine, and checks of what is left."""

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


async def ask(engine: AsyncEngine, text: str, **params: Any) -> tuple[str, int, FinishReason | None]:
    return await read(submit(engine, text, **params))


async def ask_cached(engine: AsyncEngine, text: str, **params: Any) -> tuple[str, int, FinishReason | None]:
    """Ask with the prompt in the prefix cache. Such requests have equal batches and thus equal rounding."""
    await ask(engine, text, max_tokens=1)
    return await ask(engine, text, **params)


async def outputs_of(engine: AsyncEngine, text: str, **params: Any) -> list[Output]:
    return [output async for output in submit(engine, text, **params)]


def assert_equal_up_to_near_ties(alone: list[Output], others: list[Output]) -> None:
    """Batches of other shapes round differently: greedy answers may part where two tokens are as likely.

    ``alone`` needs log-probabilities.
    """
    for one, other in zip(alone, others, strict=False):
        if one.token != other.token:
            assert one.logprobs is not None
            assert one.logprobs.chosen - dict(one.logprobs.top)[other.token] < NEAR_TIE
            return
    assert len(alone) == len(others)


def assert_nothing_runs(engine: AsyncEngine) -> None:
    """No task, no sequence, and in KV memory only what the prefix cache knows of."""
    assert engine._answers == {}
    assert engine._core._scheduler.running == []
    assert engine._core._scheduler.n_waiting == 0
    known = {r.slot: len(r.tokens) for r in engine._core._cache._residents.values() if r.sequence is None}
    assert {slot: known.get(slot, 0) for slot in range(4)} == {
        slot: engine._core._context.sequence_length(slot) for slot in range(4)
    }


async def settled(reports: Reports) -> None:
    """Wait until the engine says that nothing runs or waits."""
    with anyio.fail_after(30):
        while not reports.all or reports.all[-1].running or reports.all[-1].waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
