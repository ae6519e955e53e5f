"""The loads of the comparison. Each runs on a newly started server."""

from __future__ import annotations

import asyncio
import difflib
import itertools
import time
from collections.abc import Callable, Coroutine
from statistics import median
from typing import Any, TypeVar

from app.chat.messages import Message
from bench import decisions
from bench.client import BenchError, Timing
from bench.load import Figures, Scale, parallel, percentile, run_load, wave_rate
from bench.prompts import PLAIN, Context, Prompts, Question, Texts
from bench.servers import Server

T = TypeVar("T")
_PROMPT = 135  # tokens of a typical prompt
_PREFIX = 700  # tokens of a long prefix, such as a context
_QUESTION = 12  # tokens of a short question after it
_ANSWER = 48  # tokens
_CONCURRENCY = 8
_IDLE = 20.0  # seconds


def topics(prompts: Prompts) -> tuple[Context, ...]:
    """One short and six long contexts."""
    return (PLAIN, *(Context(f"topic{i}", Texts(prompts, f"topic{i}").text(_PREFIX)) for i in range(6)))


def unique(concurrency: int) -> Callable[[Server, Texts, Scale], Coroutine[Any, Any, Figures]]:
    """Distinct prompts from ``concurrency`` clients."""

    async def run(server: Server, texts: Texts, scale: Scale) -> Figures:
        n = scale.n({1: 8, 4: 16}.get(concurrency, 4 * concurrency), concurrency)
        questions = [texts.question(_PROMPT) for _ in range(n)]
        return (await run_load(server, questions, concurrency, _ANSWER)).figures()

    return run


async def shared(server: Server, texts: Texts, scale: Scale) -> Figures:
    """A burst of requests with a new common prefix, then more with the same prefix."""
    prefix = texts.text(_PREFIX)

    def questions(n: int) -> list[Question]:
        return [Question.of(f"{prefix}\n\n{texts.text(_QUESTION)}") for _ in range(n)]

    cold = await run_load(server, questions(scale.n(16, 8)), _CONCURRENCY, _ANSWER)
    warm = await run_load(server, questions(scale.n(32, 8)), _CONCURRENCY, _ANSWER)
    figures = {f"cold_{name}": figure for name, figure in cold.figures().items()}
    return figures | {f"warm_{name}": figure for name, figure in warm.figures().items()}


async def contexts(server: Server, texts: Texts, scale: Scale) -> Figures:
    """Questions over six contexts in random order, sent as soon as the server is ready."""
    long_ones = server.setup.contexts[1:]
    order = [context for _ in range(6) for context in texts.shuffled(long_ones)]
    questions = [Question.of(texts.text(_QUESTION), context) for context in order[: scale.n(32, 8)]]
    load = await run_load(server, questions, _CONCURRENCY, _ANSWER)
    return {**load.figures(), "ready_after": 1e3 * server.process.ready_after}


async def long(server: Server, texts: Texts, scale: Scale) -> Figures:
    """Prompts of 900 tokens, sent one after another while six answers stream."""
    long_ones = [texts.question(900) for _ in range(scale.n(12, 2))]

    async def ask_all() -> list[Timing]:
        return [await server.ask(question, 16) for question in long_ones]

    timings, figures, tokens = await _beside_streams(server, texts, ask_all)
    tokens += sum(t.prompt_tokens + t.generated_tokens for t in timings)
    return {
        "gap_p50": figures["gap_p50"],
        "gap_p99": figures["gap_p99"],
        "all_tokens_per_second": tokens / figures["seconds"],
        "long_ttft_p50": 1e3 * median(t.ttft for t in timings),
    }


async def decide_beside(server: Server, texts: Texts, scale: Scale) -> Figures:
    """Questions about new states while six answers stream."""

    # Made before: their work would delay the times at which pieces arrive.
    asked = [(texts.text(decisions.STATE), decisions.questions(texts)) for _ in range(scale.n(6, 2))]

    async def ask_all() -> None:
        for state, questions in asked:
            await decisions.ask(server, state, questions)

    return (await _beside_streams(server, texts, ask_all))[1]


async def _beside_streams(
    server: Server, texts: Texts, work: Callable[[], Coroutine[Any, Any, T]]
) -> tuple[T, Figures, int]:
    """Work while six answers stream.

    Returns:
        The result, the inter-token latency and the time of the work, and the number of streamed tokens.
    """
    streams = [Timing() for _ in range(6)]
    questions = [texts.question(_PROMPT) for _ in streams]
    tasks = [
        asyncio.create_task(server.ask(question, 1800, timing))
        for question, timing in zip(questions, streams, strict=True)
    ]
    all_answered = asyncio.ensure_future(asyncio.gather(*(timing.answered.wait() for timing in streams)))
    first_done: set[asyncio.Future[Any]] = {all_answered, *tasks}
    await asyncio.wait(first_done, return_when=asyncio.FIRST_COMPLETED)
    _check_streaming(tasks)
    started = time.perf_counter()
    result = await work()
    ended = time.perf_counter()
    _check_streaming(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    tokens = 0
    gaps: list[float] = []
    for timing in streams:
        server.read(timing)
        n_during = sum(started < at <= ended for at in timing.pieces_at)
        # A cancelled stream has no token counts, so the tokens of its text are counted.
        tokens += round(server.setup.prompts.n_tokens(timing.text) * n_during / len(timing.pieces_at))
        gaps += [1e3 * (b - a) for a, b in itertools.pairwise(timing.pieces_at) if started < b <= ended]
    figures = {
        "gap_p50": percentile(gaps, 0.5),
        "gap_p99": percentile(gaps, 0.99),
        "seconds": ended - started,
    }
    return result, figures, tokens


def _check_streaming(tasks: list[asyncio.Task[Timing]]) -> None:
    for task in tasks:
        if task.done():
            raise BenchError(f"a stream ended before the work beside it: {task.exception() or task.result()}")


async def copy(server: Server, texts: Texts, scale: Scale) -> Figures:
    """Answers that repeat the question, one at a time."""
    timings, copied = [], []
    for _ in range(scale.n(12, 4)):
        text = texts.records(64)
        timings.append(await server.ask(_repeat_request(text, texts), 64))
        copied.append(_copied_share(text, timings[-1].text))
    if median(copied) < 0.5:
        raise BenchError(f"the model does not copy: only {median(copied):.0%} of its answers is copied")
    return {"decode_rate": median(timing.decode_rate for timing in timings), "copied": median(copied)}


def _repeat_request(text: str, texts: Texts) -> Question:
    """A request to repeat a text, with two examples for small models."""
    turns: list[Message] = []
    for example in (texts.records(48), texts.records(48)):
        turns += [Message("user", f"Repeat this text:\n{example}"), Message("assistant", example)]
    return Question((*turns, Message("user", f"Repeat this text:\n{text}")))


def _copied_share(text: str, answer: str) -> float:
    """Share of the answer that is copied from the text, in matches of at least 24 characters."""
    matcher = difflib.SequenceMatcher(None, text, answer, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks() if block.size >= 24) / len(answer)


async def chat(server: Server, texts: Texts, scale: Scale) -> Figures:
    """Conversations of five turns. Each request has all earlier questions and answers."""
    said: list[tuple[Message, ...]] = [() for _ in range(scale.n(24, 8))]

    async def turn(number: int) -> Timing:
        question = Question((*said[number], Message("user", texts.text(40))))
        timing = await server.ask(question, _ANSWER)
        said[number] = (*question.messages, Message("assistant", timing.text))
        return timing

    started = time.perf_counter()
    turns = [await parallel(range(len(said)), 4, turn) for _ in range(5)]
    seconds = time.perf_counter() - started
    later = [1e3 * timing.ttft for of_turn in turns[1:] for timing in of_turn]
    return {
        "tokens_per_second": sum(t.generated_tokens for of_turn in turns for t in of_turn) / seconds,
        "first_ttft_p50": 1e3 * median(t.ttft for t in turns[0]),
        "later_ttft_p50": percentile(later, 0.5),
        "later_ttft_p99": percentile(later, 0.99),
    }


async def several(server: Server, texts: Texts, _scale: Scale) -> Figures:
    """Eight answers to one prompt."""
    question = texts.question(_PREFIX)
    return (await run_load(server, [question] * _CONCURRENCY, _CONCURRENCY, _ANSWER)).figures()


async def decode(server: Server, texts: Texts, scale: Scale) -> Figures:
    """Decode rate of one and of eight sequences, for comparison with the bare loop."""
    figures = {}
    for concurrency in (1, _CONCURRENCY):
        rates = []
        for _ in range(scale.n(4, 1)):
            wave = [texts.question(_PROMPT) for _ in range(concurrency)]
            rates.append(wave_rate((await run_load(server, wave, concurrency, 64)).timings))
        figures[f"rate_of_{concurrency}"] = median(rates)
    return figures


async def memory(server: Server, texts: Texts, scale: Scale) -> Figures:
    """Resident memory after every slot has had a long request."""
    questions = [texts.question(900) for _ in range(scale.n(16, 8))]
    started_with = server.process.resident_bytes
    await run_load(server, questions, _CONCURRENCY, 64)
    return {"start_mb": started_with / 1e6, "after_mb": server.process.resident_bytes / 1e6}


async def idle(server: Server, texts: Texts, _scale: Scale) -> Figures:
    """CPU use of an idle server after a load, as a share of one core."""
    await run_load(server, [texts.question(_PROMPT) for _ in range(_CONCURRENCY)], _CONCURRENCY, _ANSWER)
    await asyncio.sleep(2)
    before = server.process.cpu_seconds
    await asyncio.sleep(_IDLE)
    return {"core_share": (server.process.cpu_seconds - before) / _IDLE}


async def restart(server: Server, texts: Texts, _scale: Scale) -> Figures:
    """TTFT of the first request on a context after a restart, and of requests on a warm context."""
    context = server.setup.contexts[1]

    async def ttft() -> float:
        return 1e3 * (await server.ask(Question.of(texts.text(_QUESTION), context), _ANSWER)).ttft

    warm = [await ttft() for _ in range(6)][1:]
    cold_start = 1e3 * server.process.ready_after
    server.stop()
    server.start()
    return {
        "warm_ttft": median(warm),
        "restarted_ttft": await ttft(),
        "first_ready_after": cold_start,
        "ready_after": 1e3 * server.process.ready_after,
    }
