"""The engine over the real model."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import pytest

from app.engine.answer import EngineError, QueueFull, RequestTooLong
from app.engine.async_engine import AsyncEngine
from app.engine.sampling.params import SamplingParams
from app.engine.sequence import FinishReason
from tests.engine.asking import (
    LONG,
    ask,
    ask_cached,
    assert_equal_up_to_near_ties,
    assert_nothing_runs,
    chat,
    outputs_of,
    read,
    settled,
    submit,
)
from tests.engine.conftest import Reports

pytestmark = pytest.mark.anyio


async def test_it_answers_and_ends_where_the_model_ends(engine: AsyncEngine) -> None:
    text, _, reason = await ask(engine, "What is the capital of France?", max_tokens=60)
    assert "Paris" in text
    assert reason is FinishReason.EOS
    assert "<|" not in text


async def test_max_tokens_and_ignore_eos(engine: AsyncEngine) -> None:
    _, n, reason = await ask(engine, "Say hi.", max_tokens=5)
    assert (n, reason) == (5, FinishReason.LENGTH)
    _, n, reason = await ask(engine, "What is the capital of France?", max_tokens=90, ignore_eos=True)
    assert (n, reason) == (90, FinishReason.LENGTH)


async def test_a_stop_string_ends_the_text_before_it(engine: AsyncEngine) -> None:
    whole, _, _ = await ask_cached(engine, "What is the capital of France?")
    assert " of France" in whole
    text, _, reason = await ask_cached(engine, "What is the capital of France?", stop=("nowhere", "of Fra"))
    assert reason is FinishReason.STOP
    assert text == whole[: whole.index("of Fra")]


async def test_the_same_seed_gives_the_same_text_and_another_one_another(engine: AsyncEngine) -> None:
    first, again, other = [
        (await ask_cached(engine, LONG, temperature=1.0, seed=seed))[0] for seed in (1, 1, 2)
    ]
    assert first == again
    assert first != other


async def test_greedy_text_is_the_same_in_a_batch_as_alone(engine: AsyncEngine) -> None:
    questions = [f"What is {n} plus {n}?" for n in range(1, 9)]
    alone = [await outputs_of(engine, q, max_tokens=16, logprobs=20) for q in questions]
    batched = await asyncio.gather(*(outputs_of(engine, q, max_tokens=16) for q in questions))
    for one, other in zip(alone, batched, strict=True):
        assert_equal_up_to_near_ties(one, other)


async def test_a_prompt_prefilled_in_chunks_beside_another_answer_is_the_same_prompt(
    engine: AsyncEngine, reports: Reports
) -> None:
    question = " ".join(f"On day {n} nothing happened." for n in range(40)) + " Summarize this."
    other = submit(engine, LONG, max_tokens=60, ignore_eos=True)
    outputs = other.__aiter__()
    await outputs.__anext__()
    chunked = await outputs_of(engine, question, max_tokens=12)
    assert len([r for r in reports.all if r.prompt_tokens > 1 and r.generated_tokens]) >= 2
    other.cancel()
    # All logits of the prompt are requested: nothing of it comes from the cache.
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
async def test_penalties_make_a_repeating_answer_repeat_less(
    engine: AsyncEngine, params: dict[str, float]
) -> None:
    question = "Repeat the word spam again and again: spam spam spam spam spam spam"

    async def share_of_repeats(**more: Any) -> float:
        tokens = [o.token async for o in submit(engine, question, max_tokens=40, ignore_eos=True, **more)]
        return 1 - len(set(tokens)) / len(tokens)

    assert await share_of_repeats(**params) < await share_of_repeats()


async def test_repeat_last_n_of_zero_is_no_penalty(engine: AsyncEngine) -> None:
    plain = await ask_cached(engine, LONG)
    assert await ask_cached(engine, LONG, repetition_penalty=1.8, repeat_last_n=0) == plain
    assert await ask(engine, LONG, repetition_penalty=1.8) != plain


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
async def test_a_cut_to_one_token_is_greedy(engine: AsyncEngine, cut: dict[str, float]) -> None:
    greedy = await ask_cached(engine, LONG)
    assert await ask_cached(engine, LONG, temperature=2.0, seed=3, **cut) == greedy
    assert await ask(engine, LONG, temperature=2.0, seed=3) != greedy


async def test_more_than_fit_wait_and_all_get_their_answer(engine: AsyncEngine, reports: Reports) -> None:
    results = await asyncio.gather(*(ask(engine, f"Count from {n}.", max_tokens=8) for n in range(12)))
    assert all(n >= 1 and text for text, n, _ in results)
    assert max(r.running for r in reports.all) == 4
    assert 8 <= max(r.waiting for r in reports.all) < 12  # the first chunk may hold fewer than four prompts
    assert reports.generated_tokens == sum(n for _, n, _ in results)
    assert reports.prompt_tokens + reports.cached_tokens == sum(
        len(chat(engine, f"Count from {n}.")) for n in range(12)
    )


async def test_one_more_than_may_wait_is_refused_and_the_others_go_on(engine: AsyncEngine) -> None:
    answers = [submit(engine, LONG, max_tokens=4) for _ in range(12)]
    with pytest.raises(QueueFull):
        submit(engine, LONG)
    assert all(n == 4 for _, n, _ in await asyncio.gather(*map(read, answers)))
    assert (await ask(engine, LONG, max_tokens=2))[1] == 2


async def test_what_cannot_fit_is_refused_before_any_work(engine: AsyncEngine, reports: Reports) -> None:
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
    await settled(reports)
    assert reports.generated_tokens < 50
    assert_nothing_runs(engine)


async def test_cancelling_one_that_waits_and_one_in_prefill(engine: AsyncEngine, reports: Reports) -> None:
    running = [submit(engine, LONG, max_tokens=30, ignore_eos=True) for _ in range(4)]
    waiting = submit(engine, LONG)
    waiting.cancel()
    running[1].cancel()
    results = await asyncio.gather(*map(read, running), read(waiting), return_exceptions=True)
    assert [isinstance(r, EngineError) for r in results] == [False, True, False, False, True]
    await settled(reports)


async def test_sequences_that_move_keep_their_text(engine: AsyncEngine) -> None:
    """When a neighbour ends early the last sequence takes over its slot: nothing of it may be lost."""
    alone = (await ask(engine, LONG, max_tokens=40))[0]
    short = [submit(engine, "Say hi.", max_tokens=n) for n in (2, 4, 6)]
    moving = submit(engine, LONG, max_tokens=40)
    *_, (text, n, _) = await asyncio.gather(*map(read, short), read(moving))
    assert n == 40
    assert text[:20] == alone[:20]
    assert len(set(text.split())) > 10, "what follows a move should still be language"


async def test_a_crowd_with_random_cancels_leaves_nothing_behind(
    engine: AsyncEngine, reports: Reports
) -> None:
    rng = random.Random(5)

    async def one(n: int) -> None:
        try:
            answer = submit(
                engine, f"Tell me about {n}. " * rng.randint(1, 12), max_tokens=rng.randint(1, 12)
            )
        except QueueFull:
            return
        leave_after = rng.choice([None, 0, 1, 5])
        if leave_after == 0:
            answer.cancel()
            return
        seen = 0
        async for _ in answer:
            seen += 1
            if seen == leave_after:
                answer.cancel()
                return

    for _ in range(6):
        await asyncio.gather(*(one(n) for n in range(10)))
    await settled(reports)
    assert engine.n_unfinished == 0
    assert_nothing_runs(engine)
