"""The engine over the real model."""

from __future__ import annotations

import asyncio
import math
import random
import threading
from typing import Any

import anyio
import pytest

from app.engine.answer import Answer, EngineError, Output, QueueFull, RequestTooLong
from app.engine.cache.prefix_cache import PrefixCache
from app.engine.core import EngineCore
from app.engine.detokenizer import Detokenizer
from app.engine.engine import Engine, EngineOptions
from app.engine.llama import Batch, Context, DecodeAborted, DecodeError, Model
from app.engine.prompt_lookup import PromptLookup
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.samplers import GreedySampler
from app.engine.scheduler import Scheduler
from app.engine.sequence import FinishReason, Sequence
from tests.engine.conftest import Reports

pytestmark = pytest.mark.anyio

NEAR_TIE = 0.5  # difference of log-probabilities that rounding can reverse
LONG = "Write a long story about a lighthouse keeper and the sea."


def chat(engine: Engine, text: str) -> list[int]:
    prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return engine.vocab.tokenize(prompt, parse_special=True)


def submit(engine: Engine, text: str, **params: Any) -> Answer:
    defaults: dict[str, Any] = {"temperature": 0.0, "max_tokens": 32}
    return engine.submit(chat(engine, text), SamplingParams(**(defaults | params)))


async def read(answer: Answer) -> tuple[str, int, FinishReason | None]:
    outputs = [output async for output in answer]
    return "".join(o.text for o in outputs), len(outputs), outputs[-1].finish_reason


async def ask(engine: Engine, text: str, **params: Any) -> tuple[str, int, FinishReason | None]:
    return await read(submit(engine, text, **params))


async def ask_cached(engine: Engine, text: str, **params: Any) -> tuple[str, int, FinishReason | None]:
    """Ask with the prompt in the prefix cache. Such requests have equal batches and thus equal rounding."""
    await ask(engine, text, max_tokens=1)
    return await ask(engine, text, **params)


async def outputs_of(engine: Engine, text: str, **params: Any) -> list[Output]:
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


async def test_it_answers_and_ends_where_the_model_ends(engine: Engine) -> None:
    text, _, reason = await ask(engine, "What is the capital of France?", max_tokens=60)
    assert "Paris" in text
    assert reason is FinishReason.EOS
    assert "<|" not in text


async def test_max_tokens_and_ignore_eos(engine: Engine) -> None:
    _, n, reason = await ask(engine, "Say hi.", max_tokens=5)
    assert (n, reason) == (5, FinishReason.LENGTH)
    _, n, reason = await ask(engine, "What is the capital of France?", max_tokens=90, ignore_eos=True)
    assert (n, reason) == (90, FinishReason.LENGTH)


async def test_a_stop_string_ends_the_text_before_it(engine: Engine) -> None:
    whole, _, _ = await ask_cached(engine, "What is the capital of France?")
    assert " of France" in whole
    text, _, reason = await ask_cached(engine, "What is the capital of France?", stop=("nowhere", "of Fra"))
    assert reason is FinishReason.STOP
    assert text == whole[: whole.index("of Fra")]


async def test_the_same_seed_gives_the_same_text_and_another_one_another(engine: Engine) -> None:
    first, again, other = [
        (await ask_cached(engine, LONG, temperature=1.0, seed=seed))[0] for seed in (1, 1, 2)
    ]
    assert first == again
    assert first != other


async def test_greedy_text_is_the_same_in_a_batch_as_alone(engine: Engine) -> None:
    questions = [f"What is {n} plus {n}?" for n in range(1, 9)]
    alone = [await outputs_of(engine, q, max_tokens=16, logprobs=20) for q in questions]
    batched = await asyncio.gather(*(outputs_of(engine, q, max_tokens=16) for q in questions))
    for one, other in zip(alone, batched, strict=True):
        assert_equal_up_to_near_ties(one, other)


async def test_a_prompt_prefilled_in_chunks_beside_another_answer_is_the_same_prompt(
    engine: Engine, reports: Reports
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


async def test_logit_bias_forbids_and_forces_tokens(engine: Engine) -> None:
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
    engine: Engine, params: dict[str, float]
) -> None:
    question = "Repeat the word spam again and again: spam spam spam spam spam spam"

    async def share_of_repeats(**more: Any) -> float:
        tokens = [o.token async for o in submit(engine, question, max_tokens=40, ignore_eos=True, **more)]
        return 1 - len(set(tokens)) / len(tokens)

    assert await share_of_repeats(**params) < await share_of_repeats()


async def test_repeat_last_n_of_zero_is_no_penalty(engine: Engine) -> None:
    plain = await ask_cached(engine, LONG)
    assert await ask_cached(engine, LONG, repetition_penalty=1.8, repeat_last_n=0) == plain
    assert await ask(engine, LONG, repetition_penalty=1.8) != plain


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
async def test_a_cut_to_one_token_is_greedy(engine: Engine, cut: dict[str, float]) -> None:
    greedy = await ask_cached(engine, LONG)
    assert await ask_cached(engine, LONG, temperature=2.0, seed=3, **cut) == greedy
    assert await ask(engine, LONG, temperature=2.0, seed=3) != greedy


async def test_more_than_fit_wait_and_all_get_their_answer(engine: Engine, reports: Reports) -> None:
    results = await asyncio.gather(*(ask(engine, f"Count from {n}.", max_tokens=8) for n in range(12)))
    assert all(n >= 1 and text for text, n, _ in results)
    assert max(r.running for r in reports.all) == 4
    assert max(r.waiting for r in reports.all) == 8
    assert reports.generated_tokens == sum(n for _, n, _ in results)
    assert reports.prompt_tokens + reports.cached_tokens == sum(
        len(chat(engine, f"Count from {n}.")) for n in range(12)
    )


async def test_one_more_than_may_wait_is_refused_and_the_others_go_on(engine: Engine) -> None:
    answers = [submit(engine, LONG, max_tokens=4) for _ in range(12)]
    with pytest.raises(QueueFull):
        submit(engine, LONG)
    assert all(n == 4 for _, n, _ in await asyncio.gather(*map(read, answers)))
    assert (await ask(engine, LONG, max_tokens=2))[1] == 2


async def test_what_cannot_fit_is_refused_before_any_work(engine: Engine, reports: Reports) -> None:
    with pytest.raises(RequestTooLong) as error:
        engine.submit([1] * 500, SamplingParams(max_tokens=13))
    assert (error.value.n_prompt, error.value.limit) == (500, 512)
    assert reports.all == []
    answer = engine.submit([1] * 500, SamplingParams(max_tokens=12, ignore_eos=True))
    assert (await read(answer))[1:] == (12, FinishReason.LENGTH)


async def settled(reports: Reports) -> None:
    """Wait until the engine says that nothing runs or waits."""
    with anyio.fail_after(30):
        while not reports.all or reports.all[-1].running or reports.all[-1].waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def assert_nothing_runs(engine: Engine) -> None:
    """No task, no sequence, and in KV memory only what the prefix cache knows of."""
    assert engine._answers == {}
    assert engine._core._scheduler.running == []
    assert engine._core._scheduler.n_waiting == 0
    known = {r.slot: len(r.tokens) for r in engine._core._cache._residents.values() if r.sequence is None}
    assert {slot: known.get(slot, 0) for slot in range(4)} == {
        slot: engine._core._context.sequence_length(slot) for slot in range(4)
    }


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_a_cancelled_answer_frees_its_sequence(engine: Engine, reports: Reports, after: int) -> None:
    answer = submit(engine, LONG, max_tokens=300, ignore_eos=True)
    outputs = answer.__aiter__()
    for _ in range(after):
        await outputs.__anext__()
    answer.cancel()
    await settled(reports)
    assert reports.generated_tokens < 50
    assert_nothing_runs(engine)


async def test_cancelling_one_that_waits_and_one_in_prefill(engine: Engine, reports: Reports) -> None:
    running = [submit(engine, LONG, max_tokens=30, ignore_eos=True) for _ in range(4)]
    waiting = submit(engine, LONG)
    waiting.cancel()
    running[1].cancel()
    results = await asyncio.gather(*map(read, running), read(waiting), return_exceptions=True)
    assert [isinstance(r, EngineError) for r in results] == [False, True, False, False, True]
    await settled(reports)


async def test_sequences_that_move_keep_their_text(engine: Engine) -> None:
    """When a neighbour ends early the last sequence takes over its slot: nothing of it may be lost."""
    alone = (await ask(engine, LONG, max_tokens=40))[0]
    short = [submit(engine, "Say hi.", max_tokens=n) for n in (2, 4, 6)]
    moving = submit(engine, LONG, max_tokens=40)
    *_, (text, n, _) = await asyncio.gather(*map(read, short), read(moving))
    assert n == 40
    assert text[:20] == alone[:20]
    assert len(set(text.split())) > 10, "what follows a move should still be language"


async def test_a_crowd_with_random_cancels_leaves_nothing_behind(engine: Engine, reports: Reports) -> None:
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


class TestFaults:
    """A fault ends the requests that it concerns; the others get their answers."""

    @pytest.mark.parametrize(
        ("owner", "name", "part"),
        [
            (PrefixCache, "occupy", "sequence"),
            (GreedySampler, "sample", "sampler"),
            (Detokenizer, "push", "detokenizer"),
            (PromptLookup, "propose", "lookup"),
            (EngineCore, "_score", "sequence"),
            (Scheduler, "remove", "sequence"),
        ],
    )
    async def test_of_one_sequence_ends_that_one(
        self,
        engine: Engine,
        reports: Reports,
        compute_lock: threading.Lock,
        monkeypatch: pytest.MonkeyPatch,
        owner: type,
        name: str,
        part: str,
    ) -> None:
        with compute_lock:
            faulty, healthy = submit(engine, "Say hi.", max_tokens=6, prompt_logprobs=1), submit(engine, LONG)
            concerned = faulty.sequence if part == "sequence" else getattr(faulty.sequence, part)
            method = getattr(owner, name)

            def fail(*arguments: Any, **more: Any) -> Any:
                is_concerned = concerned in arguments or getattr(arguments[1], "sequence", None) is concerned
                if is_concerned and (name != "push" or faulty.sequence.n_generated > 2):
                    raise MemoryError("out of memory")
                return method(*arguments, **more)

            monkeypatch.setattr(owner, name, fail)
        if name != "remove":  # its last token is out before the fault
            with pytest.raises(EngineError, match="out of memory"):
                await read(faulty)
        assert (await read(healthy))[1] == 32
        await settled(reports)
        assert_nothing_runs(engine)

    async def test_of_a_move_ends_the_sequence_that_moves(
        self, engine: Engine, reports: Reports, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        n_tokens = (2, 40, 40)
        first, stays, moves = (submit(engine, LONG + " " * n, max_tokens=m) for n, m in enumerate(n_tokens))
        move = PrefixCache.move

        def fail_for_one(cache: PrefixCache, sequence: Sequence, target: int) -> None:
            with monkeypatch.context() as patch:
                if sequence is moves.sequence:
                    patch.setattr(Context, "restore_sequence", lambda *_: False)
                move(cache, sequence, target)

        monkeypatch.setattr(PrefixCache, "move", fail_for_one)
        assert (await read(first))[1] == 2
        with pytest.raises(EngineError, match="cannot be moved"):
            await read(moves)
        assert (await read(stays))[1] == 40
        await settled(reports)
        assert_nothing_runs(engine)

    async def test_of_a_decode_ends_its_batch(
        self, model: Model, reports: Reports, compute_lock: threading.Lock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = Engine(model, EngineOptions(512, 1, n_threads=2), reports, compute_lock)
        engine.start()
        decode = Context.decode

        def fail(context: Context, batch: Batch) -> None:
            monkeypatch.setattr(Context, "decode", decode)
            raise DecodeError(-3)

        with compute_lock:
            running, waiting = submit(engine, LONG, max_tokens=3), submit(engine, LONG, max_tokens=3)
            monkeypatch.setattr(Context, "decode", fail)
        with pytest.raises(EngineError, match="llama_decode returned -3"):
            await read(running)
        assert (await read(waiting))[1] == 3
        await engine.close()

    @pytest.mark.parametrize("method", ["load_context", "save_context"])
    async def test_of_a_context(self, engine: Engine, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        def fail(*_: object) -> None:
            raise OSError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(PrefixCache, method, fail)
            with pytest.raises(EngineError, match="disk full"):
                await engine.warm(chat(engine, LONG))
        assert await engine.warm(chat(engine, LONG)) > 0

    @pytest.mark.parametrize(
        ("owner", "name"), [(Scheduler, "schedule"), (EngineCore, "add"), (EngineCore, "take_results")]
    )
    async def test_of_the_engine_itself_ends_all(
        self,
        model: Model,
        compute_lock: threading.Lock,
        monkeypatch: pytest.MonkeyPatch,
        owner: type,
        name: str,
    ) -> None:
        """Running, waiting and not yet taken in: no client may hang, and the failure must show."""
        failures: list[BaseException] = []
        options = EngineOptions(512, 1, n_threads=2)
        engine = Engine(model, options, None, compute_lock, on_failure=failures.append)
        engine.start()

        def fail(*_: object) -> None:
            raise RuntimeError("broken")

        with compute_lock:
            answers = [submit(engine, LONG, max_tokens=200, ignore_eos=True) for _ in range(2)]
        outputs = answers[0].__aiter__()
        await outputs.__anext__()
        with compute_lock:
            answers.append(submit(engine, LONG))
            monkeypatch.setattr(owner, name, fail)
            answers.append(submit(engine, LONG))
        with anyio.fail_after(60):
            for answer in answers:
                with pytest.raises(EngineError, match="broken"):
                    await read(answer)
        assert isinstance(engine.failure, RuntimeError)
        assert failures == [engine.failure]
        assert engine.n_unfinished == 0
        with pytest.raises(EngineError, match="broken"):
            submit(engine, LONG)
        await engine.close()


class TestClose:
    async def test_ends_what_runs_with_an_error(self, engine: Engine) -> None:
        answer = submit(engine, LONG, max_tokens=400, ignore_eos=True)
        outputs = answer.__aiter__()
        await outputs.__anext__()
        await engine.close()
        with pytest.raises(EngineError, match="shutting down"):
            async for _ in outputs:
                pass
        with pytest.raises(EngineError):
            submit(engine, LONG)
        assert engine.failure is None

    async def test_ends_what_is_in_the_inbox(self, engine: Engine, compute_lock: threading.Lock) -> None:
        with compute_lock:
            before = submit(engine, LONG)
            closing = asyncio.create_task(engine.close())
            between = submit(engine, LONG)
            await asyncio.sleep(0)
            with pytest.raises(EngineError, match="shutting down"):
                submit(engine, LONG)
        with anyio.fail_after(60):
            for answer in (before, between):
                with pytest.raises(EngineError, match="shutting down"):
                    await read(answer)
        await closing

    async def test_aborts_the_running_decode(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        decode, abort = Context.decode, Context.abort
        is_decoding, is_aborted = threading.Event(), threading.Event()
        ends = list[type]()

        def decode_after_abort(context: Context, batch: Batch) -> None:
            is_decoding.set()
            assert is_aborted.wait(60)
            with pytest.raises(DecodeAborted) as raised:
                decode(context, batch)
            ends.append(raised.type)
            raise raised.value

        def note(context: Context) -> None:
            abort(context)
            is_aborted.set()

        monkeypatch.setattr(Context, "decode", decode_after_abort)
        monkeypatch.setattr(Context, "abort", note)
        answer = submit(engine, LONG)
        assert await asyncio.to_thread(is_decoding.wait, 60)
        await engine.close()
        assert ends == [DecodeAborted]
        assert engine.failure is None
        with pytest.raises(EngineError, match="shutting down"):
            await read(answer)
