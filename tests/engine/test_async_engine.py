"""The engine with the default model: answers, sampling, the queue and cancellation."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import pytest

from app.engine.answer import Answer, EngineError, QueueFull, RequestTooLong
from app.engine.async_engine import AsyncEngine
from app.engine.client import Client
from app.engine.sampling.params import SamplingParams
from app.engine.sequence import FinishReason
from tests.engine.conftest import Reports
from tests.engine.engine_calls import (
    LONG,
    assert_equal_up_to_near_ties,
    assert_nothing_runs,
    chat,
    generate,
    generate_cached,
    outputs_of,
    read,
    submit,
    until_idle,
)

pytestmark = pytest.mark.anyio


async def test_an_answer_ends_with_the_end_token_of_the_model(engine: AsyncEngine) -> None:
    text, _, reason = await generate(engine, "What is the capital of France?", max_tokens=60)
    assert "Paris" in text
    assert reason is FinishReason.EOS
    assert "<|" not in text


async def test_max_tokens_and_ignore_eos_determine_the_length(engine: AsyncEngine) -> None:
    _, n, reason = await generate(engine, "Say hi.", max_tokens=5)
    assert (n, reason) == (5, FinishReason.LENGTH)
    _, n, reason = await generate(engine, "What is the capital of France?", max_tokens=90, ignore_eos=True)
    assert (n, reason) == (90, FinishReason.LENGTH)


async def test_a_stop_string_ends_the_text_before_it(engine: AsyncEngine) -> None:
    whole, _, _ = await generate_cached(engine, "What is the capital of France?")
    assert " of France" in whole
    text, _, reason = await generate_cached(
        engine, "What is the capital of France?", stop=("nowhere", "of Fra")
    )
    assert reason is FinishReason.STOP
    assert text == whole[: whole.index("of Fra")]


async def test_equal_seeds_give_equal_texts(engine: AsyncEngine) -> None:
    first, again, other = [
        (await generate_cached(engine, LONG, temperature=1.0, seed=seed))[0] for seed in (1, 1, 2)
    ]
    assert first == again
    assert first != other


@pytest.mark.slow
async def test_greedy_answers_are_equal_in_a_batch_and_alone(engine: AsyncEngine) -> None:
    questions = [f"What is {n} plus {n}?" for n in range(1, 9)]
    alone = [await outputs_of(engine, q, max_tokens=16, logprobs=20) for q in questions]
    batched = await asyncio.gather(*(outputs_of(engine, q, max_tokens=16) for q in questions))
    for one, other in zip(alone, batched, strict=True):
        assert_equal_up_to_near_ties(one, other)


@pytest.mark.slow
async def test_prefill_in_chunks_beside_an_answer_gives_an_equal_answer(
    engine: AsyncEngine, reports: Reports
) -> None:
    question = " ".join(f"On day {n} nothing happened." for n in range(40)) + " Summarize this."
    other = submit(engine, LONG, max_tokens=60, ignore_eos=True)
    outputs = other.__aiter__()
    await outputs.__anext__()
    chunked = await outputs_of(engine, question, max_tokens=12)
    assert len([r for r in reports.all if r.prompt_tokens > 1 and r.generated_tokens]) >= 2
    other.cancel()
    # With all logits of the prompt requested, none of it is from the cache.
    alone = await outputs_of(engine, question, max_tokens=12, logprobs=20, prompt_logprobs=0)
    assert_equal_up_to_near_ties(alone, chunked)


async def test_logit_bias_forbids_and_forces_tokens(engine: AsyncEngine) -> None:
    [token] = engine.vocab.tokenize(" banana", parse_special=False)[:1]
    answer = submit(engine, "Say anything.", logit_bias={token: 100.0}, max_tokens=3)
    assert [o.token async for o in answer] == [token] * 3
    plain = [o.token async for o in submit(engine, "Say anything.", max_tokens=1)]
    biased = [
        o.token async for o in submit(engine, "Say anything.", max_tokens=1, logit_bias={plain[0]: -math.inf})
    ]
    assert biased != plain


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.5, "repeat_last_n": -1},
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
    ],
)
@pytest.mark.slow
async def test_penalties_reduce_repetition(engine: AsyncEngine, params: dict[str, float]) -> None:
    question = "Repeat the word spam again and again: spam spam spam spam spam spam"

    async def share_of_repeats(**more: Any) -> float:
        tokens = [o.token async for o in submit(engine, question, max_tokens=40, ignore_eos=True, **more)]
        return 1 - len(set(tokens)) / len(tokens)

    assert await share_of_repeats(**params) < await share_of_repeats()


async def test_repeat_last_n_0_disables_the_penalty(engine: AsyncEngine) -> None:
    plain = await generate_cached(engine, LONG)
    assert await generate_cached(engine, LONG, repetition_penalty=1.8, repeat_last_n=0) == plain
    assert await generate(engine, LONG, repetition_penalty=1.8) != plain


@pytest.mark.parametrize("truncation", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
@pytest.mark.slow
async def test_truncation_to_one_token_is_greedy(engine: AsyncEngine, truncation: dict[str, float]) -> None:
    greedy = await generate_cached(engine, LONG)
    assert await generate_cached(engine, LONG, temperature=2.0, seed=3, **truncation) == greedy
    assert await generate(engine, LONG, temperature=2.0, seed=3) != greedy


async def test_more_requests_than_sequences_wait_and_are_answered(
    engine: AsyncEngine, reports: Reports
) -> None:
    results = await asyncio.gather(*(generate(engine, f"Count from {n}.", max_tokens=8) for n in range(12)))
    assert all(n >= 1 and text for text, n, _ in results)
    assert max(r.running for r in reports.all) == 4
    assert (
        8 <= max(r.waiting for r in reports.all) < 12
    )  # the first chunk can contain fewer than four prompts
    assert reports.generated_tokens == sum(n for _, n, _ in results)
    assert reports.prompt_tokens + reports.cached_tokens == sum(
        len(chat(engine, f"Count from {n}.")) for n in range(12)
    )


async def test_a_client_has_at_most_its_running_and_waiting_requests(
    engine: AsyncEngine, reports: Reports
) -> None:
    limited, params = Client("limited", max_running=2, max_waiting=3), SamplingParams(max_tokens=4)
    answers = [engine.submit(chat(engine, LONG), params, limited) for _ in range(5)]
    with pytest.raises(QueueFull, match="5 requests of client limited"):
        engine.submit(chat(engine, LONG), params, limited)
    assert (await generate(engine, LONG, max_tokens=4))[1] == 4  # of another client
    assert all(n >= 1 for _, n, _ in await asyncio.gather(*map(read, answers)))
    assert max(r.running for r in reports.all) <= 3
    assert (await read(engine.submit(chat(engine, LONG), params, limited)))[1] == 4  # there is room again


@pytest.mark.slow
async def test_a_client_is_answered_while_another_has_all_slots(engine: AsyncEngine) -> None:
    """Suspended answers continue with their text."""
    params = SamplingParams(max_tokens=80, temperature=0.0, ignore_eos=True)
    alone = (await read(engine.submit(chat(engine, LONG), params)))[0]
    flood = [engine.submit(chat(engine, LONG), params, Client("flood")) for _ in range(8)]
    finished = list[str]()

    async def note(name: str, answer: Answer) -> tuple[str, int, FinishReason | None]:
        result = await read(answer)
        finished.append(name)
        return result

    reading = [asyncio.create_task(note("flood", answer)) for answer in flood]
    while sum(answer.sequence.n_generated > 0 for answer in flood) < 4:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    lone = engine.submit(chat(engine, "Say hi."), SamplingParams(max_tokens=4), Client("lone"))
    await note("lone", lone)
    results = await asyncio.gather(*reading)
    assert finished[0] == "lone"
    assert [n for _, n, _ in results] == [80] * 8
    assert {text[:20] for text, _, _ in results} == {alone[:20]}


async def test_a_request_that_cannot_fit_is_rejected_before_any_step(
    engine: AsyncEngine, reports: Reports
) -> None:
    with pytest.raises(RequestTooLong) as error:
        engine.submit([1] * 500, SamplingParams(max_tokens=13))
    assert (error.value.n_prompt, error.value.limit) == (500, 512)
    assert reports.all == []
    answer = engine.submit([1] * 500, SamplingParams(max_tokens=12, ignore_eos=True))
    assert (await read(answer))[1:] == (12, FinishReason.LENGTH)


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_a_cancelled_answer_frees_its_sequence(
    engine: AsyncEngine, reports: Reports, after: int
) -> None:
    answer = submit(engine, LONG, max_tokens=300, ignore_eos=True)
    outputs = answer.__aiter__()
    for _ in range(after):
        await outputs.__anext__()
    answer.cancel()
    await until_idle(reports)
    assert reports.generated_tokens < 50
    assert_nothing_runs(engine)


async def test_waiting_and_prefilling_requests_can_be_cancelled(
    engine: AsyncEngine, reports: Reports
) -> None:
    running = [submit(engine, LONG, max_tokens=30, ignore_eos=True) for _ in range(4)]
    waiting = submit(engine, LONG)
    waiting.cancel()
    running[1].cancel()
    results = await asyncio.gather(*map(read, running), read(waiting), return_exceptions=True)
    assert [isinstance(r, EngineError) for r in results] == [False, True, False, False, True]
    await until_idle(reports)


async def test_a_moved_sequence_keeps_its_text(engine: AsyncEngine) -> None:
    """When a sequence ends, the last one moves to its slot."""
    alone = (await generate(engine, LONG, max_tokens=40))[0]
    short = [submit(engine, "Say hi.", max_tokens=n) for n in (2, 4, 6)]
    moving = submit(engine, LONG, max_tokens=40)
    *_, (text, n, _) = await asyncio.gather(*map(read, short), read(moving))
    assert n == 40
    assert text[:20] == alone[:20]
    assert len(set(text.split())) > 10, "the text after a move is language"


@pytest.mark.slow
async def test_random_cancellations_leave_no_request_and_no_state(
    engine: AsyncEngine, reports: Reports
) -> None:
    rng = random.Random(5)

    async def one(n: int) -> None:
        answer = submit(engine, f"Tell me about {n}. " * rng.randint(1, 12), max_tokens=rng.randint(1, 12))
        cancel_after = rng.choice([None, 0, 1, 5])
        if cancel_after == 0:
            answer.cancel()
            return
        n_outputs = 0
        async for _ in answer:
            n_outputs += 1
            if n_outputs == cancel_after:
                answer.cancel()
                return

    for _ in range(6):
        await asyncio.gather(*(one(n) for n in range(10)))
    await until_idle(reports)
    assert engine.n_unfinished == 0
    assert_nothing_runs(engine)
