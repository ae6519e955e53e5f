"""A fault in the engine ends exactly the requests that it concerns."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import anyio
import pytest

from app.engine.answer import Answer, EngineError, Result
from app.engine.async_engine import AsyncEngine
from app.engine.cache.prefix_cache import PrefixCache
from app.engine.detokenizer import Detokenizer
from app.engine.engine import Engine, EngineOptions
from app.engine.llama import Batch, Context, DecodeAborted, DecodeError, Model
from app.engine.prompt_lookup import PromptLookup
from app.engine.sampling.samplers import TokenSampler
from app.engine.scheduler import Scheduler
from app.engine.sequence import Sequence
from tests.engine.conftest import Reports
from tests.engine.engine_calls import (
    LONG,
    assert_nothing_runs,
    chat,
    read,
    submit,
    until_idle,
)

pytestmark = pytest.mark.anyio


class TestFaults:
    @pytest.mark.parametrize(
        ("owner", "name", "part"),
        [
            (PrefixCache, "occupy", "sequence"),
            (TokenSampler, "sample", "sampler"),
            (Detokenizer, "push", "detokenizer"),
            (PromptLookup, "propose", "lookup"),
            (Engine, "_score", "sequence"),
            (Scheduler, "remove", "sequence"),
        ],
    )
    @pytest.mark.slow
    async def test_a_fault_in_one_sequence_ends_its_request_only(
        self,
        engine: AsyncEngine,
        reports: Reports,
        compute_lock: threading.Lock,
        monkeypatch: pytest.MonkeyPatch,
        owner: type,
        name: str,
        part: str,
    ) -> None:
        with compute_lock:
            faulty, healthy = submit(engine, "Say hi.", max_tokens=6, prompt_logprobs=1), submit(engine, LONG)
            faulty_part = faulty.sequence if part == "sequence" else getattr(faulty.sequence, part)
            method = getattr(owner, name)

            def fail(*arguments: Any, **options: Any) -> Any:
                is_faulty = any(
                    candidate is faulty_part
                    for candidate in (*arguments, getattr(arguments[1], "sequence", None))
                )
                if is_faulty and (name != "push" or faulty.sequence.n_generated > 2):
                    raise MemoryError("out of memory")
                return method(*arguments, **options)

            monkeypatch.setattr(owner, name, fail)
        if name != "remove":  # the fault is after the last token
            with pytest.raises(EngineError, match="out of memory"):
                await read(faulty)
        assert (await read(healthy))[1] == 32
        await until_idle(reports)
        assert_nothing_runs(engine)

    async def test_a_fault_in_a_move_ends_the_moving_sequence_only(
        self, engine: AsyncEngine, reports: Reports, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        n_tokens = (40, 2, 40)
        staying, first, moving = (
            submit(engine, LONG + " " * n, max_tokens=m) for n, m in enumerate(n_tokens)
        )
        move = PrefixCache.move

        def fail_for_one(cache: PrefixCache, sequence: Sequence, target: int) -> None:
            with monkeypatch.context() as patch:
                if sequence is moving.sequence:
                    patch.setattr(Context, "restore_sequence", lambda *_: False)
                move(cache, sequence, target)

        monkeypatch.setattr(PrefixCache, "move", fail_for_one)
        assert (await read(first))[1] == 2
        with pytest.raises(EngineError, match="no room to move"):
            await read(moving)
        assert (await read(staying))[1] == 40
        await until_idle(reports)
        assert_nothing_runs(engine)

    async def test_a_failed_decode_ends_its_batch_only(
        self, model: Model, reports: Reports, compute_lock: threading.Lock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = AsyncEngine(model, EngineOptions(512, 1, n_threads=1), reports, compute_lock)
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

    async def test_a_fault_in_a_cancellation_ends_that_request_only(
        self, engine: AsyncEngine, reports: Reports, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cancelled, healthy = submit(engine, LONG, max_tokens=300, ignore_eos=True), submit(engine, LONG)
        outputs = cancelled.__aiter__()
        await outputs.__anext__()
        leave = PrefixCache.leave

        def fail_once(cache: PrefixCache, sequence: Sequence) -> None:
            if sequence is cancelled.sequence:
                raise MemoryError("out of memory")
            leave(cache, sequence)

        monkeypatch.setattr(PrefixCache, "leave", fail_once)
        cancelled.cancel()
        with pytest.raises(EngineError, match="out of memory"):
            async for _ in outputs:
                pass
        assert (await read(healthy))[1] == 32
        await until_idle(reports)
        assert_nothing_runs(engine)

    @pytest.mark.parametrize("method", ["load_context", "save_context"])
    async def test_a_fault_in_a_context_fails_its_warming_only(
        self, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(PrefixCache, method, fail)
            with pytest.raises(EngineError, match="disk full"):
                await engine.warm(chat(engine, LONG))
        assert await engine.warm(chat(engine, LONG)) > 0

    @pytest.mark.parametrize(
        ("owner", "name"), [(Scheduler, "schedule"), (Engine, "add"), (Engine, "take_results")]
    )
    async def test_a_fault_in_the_engine_ends_all_requests(
        self,
        model: Model,
        compute_lock: threading.Lock,
        monkeypatch: pytest.MonkeyPatch,
        owner: type,
        name: str,
    ) -> None:
        """Running, waiting and newly submitted requests end, and the failure is reported."""
        failures: list[BaseException] = []
        options = EngineOptions(512, 1, n_threads=1)
        engine = AsyncEngine(model, options, None, compute_lock, on_failure=failures.append)
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

    async def test_a_fault_in_a_delivery_ends_all_requests(
        self,
        model: Model,
        compute_lock: threading.Lock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Outputs of later steps are not delivered after a gap."""
        failures: list[BaseException] = []
        options = EngineOptions(1024, 2, n_threads=1)
        engine = AsyncEngine(model, options, None, compute_lock, on_failure=failures.append)
        engine.start()
        with compute_lock:
            answers = [submit(engine, LONG, max_tokens=200, ignore_eos=True) for _ in range(2)]
        put, n_put = Answer.put, 0

        def fail_once(answer: Answer, output: Result) -> None:
            nonlocal n_put
            n_put += answer is answers[0]
            if n_put == 4:
                n_put += 1
                time.sleep(0.3)  # the thread computes more steps
                raise MemoryError("out of memory")
            put(answer, output)

        monkeypatch.setattr(Answer, "put", fail_once)
        for answer in answers:
            tokens: list[int] = []

            async def receive(answer: Answer = answer, tokens: list[int] = tokens) -> None:
                async for output in answer:
                    tokens.append(output.token)

            with anyio.fail_after(60), pytest.raises(EngineError, match="the engine failed: out of memory"):
                await receive()
            assert tokens == answer.sequence.tokens[answer.n_prompt :][: len(tokens)]
        assert failures == [engine.failure]
        assert engine.n_unfinished == 0
        with pytest.raises(EngineError, match="out of memory"):
            submit(engine, LONG)
        await engine.close()

    async def test_a_fault_in_closing_a_sampler_ends_all_requests(
        self, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failures: list[BaseException] = []
        engine = AsyncEngine(model, EngineOptions(512, 1, n_threads=1), on_failure=failures.append)
        engine.start()
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # it logs the fault by default

        def fail(*_: object) -> None:
            raise RuntimeError("broken")

        answers = [submit(engine, LONG, max_tokens=200, ignore_eos=True) for _ in range(3)]
        await answers[0].__aiter__().__anext__()
        monkeypatch.setattr(TokenSampler, "close", fail)
        monkeypatch.setattr(Engine, "step", fail)
        for answer in answers:
            with anyio.fail_after(60), pytest.raises(EngineError, match="broken"):
                await read(answer)
        assert failures == [engine.failure]
        await engine.close()


class TestClose:
    async def test_close_ends_running_requests_with_an_error(self, engine: AsyncEngine) -> None:
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

    async def test_close_ends_submitted_requests_with_an_error(
        self, engine: AsyncEngine, compute_lock: threading.Lock
    ) -> None:
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

    async def test_close_aborts_a_running_decode(
        self, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decode, abort = Context.decode, Context.abort
        is_decoding, is_aborted = threading.Event(), threading.Event()
        raised_types = list[type]()

        def decode_after_abort(context: Context, batch: Batch) -> None:
            is_decoding.set()
            assert is_aborted.wait(60)
            with pytest.raises(DecodeAborted) as raised:
                decode(context, batch)
            raised_types.append(raised.type)
            raise raised.value

        def record_abort(context: Context) -> None:
            abort(context)
            is_aborted.set()

        monkeypatch.setattr(Context, "decode", decode_after_abort)
        monkeypatch.setattr(Context, "abort", record_abort)
        answer = submit(engine, LONG)
        assert await asyncio.to_thread(is_decoding.wait, 60)
        await engine.close()
        assert raised_types == [DecodeAborted]
        assert engine.failure is None
        with pytest.raises(EngineError, match="shutting down"):
            await read(answer)
