"""Questions about one prompt: their log-probabilities, and their life beside other requests."""

from __future__ import annotations

import asyncio
import threading

import anyio
import numpy as np
import pytest

from app.engine.answer import EngineError, RequestTooLong
from app.engine.async_engine import AsyncEngine
from app.engine.llama import Batch, Context, Model
from app.engine.sampling.logprobs import logprobs_of
from app.engine.sampling.params import SamplingParams
from app.engine.scoring import Question, ScoringSequence
from tests.engine.conftest import Reports
from tests.engine.engine_calls import LONG, assert_nothing_runs, chat, submit, until_idle
from tests.engine.test_engine_memory_kinds import KINDS, engine_of
from tests.tiny_models import Kind, TinyModel

pytestmark = pytest.mark.anyio

STATE = list(range(1000, 1120))
QUESTIONS = (
    Question((201, 202, 203), ((11,), (12,), (13,))),
    # Options with common prefixes, one of them a prefix of another.
    Question((201, 202, 204, 205), ((21, 22, 23), (21, 22), (21, 24), (25,), (26, 22, 23))),
    Question((206,), ((11,), (21, 22, 23))),
)


def expected(model: Model, prompt: list[int], question: Question) -> list[float]:
    """The log-probability of each option, each computed alone and from its first token."""
    context = Context(model, n_ctx=512, n_sequences=1, n_batch=512, n_threads=1, n_outputs=8)
    sums = []
    for option in question.options:
        context.clear_sequence(0)
        batch = Batch(512)
        batch.add([*prompt, *question.tokens, *option[:-1]], 0, 0, n_outputs=len(option))
        context.decode(batch)
        rows = context.logits
        sums.append(sum(logprobs_of(row, token, 0).chosen for row, token in zip(rows, option, strict=True)))
    context.close()
    return sums


async def test_options_have_the_log_probabilities_of_their_tokens_and_the_prompt_is_computed_once(
    engine: AsyncEngine, model: Model, reports: Reports
) -> None:
    first = await engine.score(STATE, QUESTIONS)
    n_first = reports.prompt_tokens
    second = await engine.score(STATE, QUESTIONS[::-1])
    for question, logprobs, again in zip(QUESTIONS, first.logprobs, second.logprobs[::-1], strict=True):
        np.testing.assert_allclose(logprobs, expected(model, STATE, question), atol=0.05)
        assert logprobs == again
    # Computed after the prompt: 3 + (2 new of 4, then options 21 22 and 26 22) + (1 and 21 22).
    assert n_first == len(STATE) + 3 + (2 + 2 + 2) + (1 + 2)
    assert second.n_cached >= len(STATE)
    assert reports.prompt_tokens - n_first <= 12
    assert reports.cached_tokens == second.n_cached
    assert_nothing_runs(engine)


@pytest.mark.parametrize("kind", KINDS)
async def test_memory_that_cannot_be_truncated_returns_to_the_end_of_the_prompt(
    tiny_model: TinyModel, kind: Kind
) -> None:
    model = Model(tiny_model(kind))
    prompt = [token % 200 + 3 for token in STATE]
    # expected() needs the model before engine_of closes it.
    wanted = [expected(model, prompt, question) for question in QUESTIONS]
    async with engine_of(model) as engine:
        scored = await engine.score(prompt, QUESTIONS)
        for logprobs, exact in zip(scored.logprobs, wanted, strict=True):
            np.testing.assert_allclose(logprobs, exact, atol=0.15)
        assert isinstance(engine._observer, Reports)
        assert engine._observer.prompt_tokens < 2 * len(prompt)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_after_its_scored_options_continues_from_the_prompt(
    tiny_model: TinyModel, kind: Kind
) -> None:
    prompt = [token % 200 + 3 for token in STATE]
    async with engine_of(Model(tiny_model(kind))) as engine:
        question = Question(tuple(prompt[-1:]), ((11,), (12,)))
        await engine.score(prompt[:-1], [question], checkpoints=[len(prompt) - 1])
        answer = engine.submit(prompt, SamplingParams(max_tokens=2, temperature=0))
        assert len([output async for output in answer]) <= 2
        assert answer.n_cached == len(prompt) - 1


async def test_questions_beside_an_answer_and_equal_questions_do_not_change_each_other(
    engine: AsyncEngine, compute_lock: threading.Lock
) -> None:
    alone = await engine.score(STATE, QUESTIONS)
    with compute_lock:
        answer = submit(engine, LONG, max_tokens=40)
        tasks = [asyncio.ensure_future(engine.score(STATE[:60] + STATE[:60], QUESTIONS)) for _ in range(3)]
        tasks.append(asyncio.ensure_future(engine.score(STATE, QUESTIONS)))
        await asyncio.sleep(0)
    *others, beside = await asyncio.gather(*tasks)
    assert len([output async for output in answer]) == 40
    np.testing.assert_allclose(np.concatenate(beside.logprobs), np.concatenate(alone.logprobs), atol=0.05)
    for other in others:
        np.testing.assert_allclose(
            np.concatenate(other.logprobs), np.concatenate(others[0].logprobs), atol=0.05
        )
    assert_nothing_runs(engine)


async def test_a_cancelled_call_frees_its_slot(
    engine: AsyncEngine, reports: Reports, compute_lock: threading.Lock
) -> None:
    many = [Question((200 + i, 201), ((11,),)) for i in range(200)]
    task = asyncio.ensure_future(engine.score(STATE, many))
    with anyio.fail_after(120):
        while not reports.prompt_tokens:  # noqa: ASYNC110
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_idle(reports)
    assert reports.prompt_tokens < len(STATE) + 2 * 200
    assert_nothing_runs(engine)


async def test_a_fault_while_scoring_ends_only_its_request(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ScoringSequence.read

    def fail(self: ScoringSequence, rows: np.ndarray) -> None:  # type: ignore[type-arg]
        if len(self.questions) == 1:
            raise RuntimeError("forced")
        read(self, rows)

    monkeypatch.setattr(ScoringSequence, "read", fail)
    answer = submit(engine, LONG, max_tokens=10)
    faulty, healthy = await asyncio.gather(
        engine.score(STATE, QUESTIONS[:1]), engine.score(STATE, QUESTIONS), return_exceptions=True
    )
    assert isinstance(faulty, EngineError)
    assert "forced" in str(faulty)
    assert isinstance(healthy, ScoringSequence)
    assert len([output async for output in answer]) == 10
    assert_nothing_runs(engine)


async def test_questions_that_cannot_fit_are_rejected(engine: AsyncEngine) -> None:
    with pytest.raises(RequestTooLong, match="exceed the limit of 512"):
        await engine.score(chat(engine, LONG), [Question((1,) * 500, ((11,),))])
    with pytest.raises(ValueError, match="vocabulary"):
        await engine.score(STATE, [Question((), ((11,),))])
