"""The engine: one thread that owns the context, and the async face that the service awaits."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import Protocol

from app.engine.detokenizer import Detokenizer
from app.engine.llama import Batch, Context, Model, Vocab
from app.engine.sampling import SamplingParams, make_sampler
from app.engine.scheduler import Plan, Scheduler
from app.engine.sequence import FinishReason, Sequence

logger = logging.getLogger("tokenstream.engine")

# Tokens of waiting prompts in one step: llama.cpp computes at most 512 in one pass, more would only
# delay the next look at the inbox; beside running answers less, so that their next token is not far.
PREFILL_CHUNK = 512
PREFILL_CHUNK_BESIDE_DECODE = 128


class RequestTooLong(ValueError):
    """Prompt and answer do not fit into a sequence's KV memory."""

    def __init__(self, n_prompt: int, max_tokens: int, limit: int) -> None:
        super().__init__(f"{n_prompt} prompt tokens and max_tokens {max_tokens} exceed the limit of {limit}")
        self.n_prompt, self.max_tokens, self.limit = n_prompt, max_tokens, limit


class QueueFull(Exception):
    """As many requests wait as may wait."""


class EngineError(Exception):
    """The engine could not compute an answer; other answers may go on."""


@dataclass(frozen=True, slots=True)
class Output:
    """What one step added to one answer: a token, and the text that has become certain with it."""

    token: int
    text: str
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did, for metrics. Seconds and tokens."""

    seconds: float
    prompt_tokens: int
    generated_tokens: int
    running: int
    waiting: int


class Observer(Protocol):
    """Is told of every step, on the event loop."""

    def on_step(self, report: StepReport) -> None:
        """Take one step's report."""


class Answer:
    """One request's answer: iterate to receive it, cancel it to leave early."""

    def __init__(self, engine: Engine, sequence: Sequence) -> None:
        self._engine = engine
        self._sequence = sequence
        self._inbox: asyncio.Queue[Output | Exception] = asyncio.Queue()

    @property
    def n_prompt(self) -> int:
        """How many tokens the prompt has."""
        return len(self._sequence.prompt)

    def put(self, output: Output | Exception) -> None:
        """Hand in what comes next; called on the event loop."""
        self._inbox.put_nowait(output)

    def cancel(self) -> None:
        """Free what the answer holds at the next step; nothing happens when it is finished."""
        self._engine.cancel(self)

    async def __aiter__(self) -> AsyncIterator[Output]:
        """Yield an Output for every token.

        Raises:
            EngineError: The answer cannot be completed.
        """
        while True:
            output = await self._inbox.get()
            if isinstance(output, Exception):
                raise output
            yield output
            if output.finish_reason is not None:
                return


class Engine:
    """Continuous batching over one model: every step carries one token of each running sequence and a
    chunk of waiting prompts."""

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        max_sequences: int,
        n_threads: int,
        max_waiting: int = 256,
        observer: Observer | None = None,
    ) -> None:
        """Reserve KV memory for ``n_ctx`` tokens in all, shared out evenly over ``max_sequences``.

        Raises:
            ModelLoadError: There is not enough memory.
        """
        n_batch = PREFILL_CHUNK + max_sequences
        self._context = Context(
            model, n_ctx=n_ctx, n_sequences=max_sequences, n_batch=n_batch, n_threads=n_threads
        )
        self._batch = Batch(n_batch)
        self._scheduler = Scheduler(
            max_sequences,
            prefill_chunk=PREFILL_CHUNK,
            prefill_chunk_beside_decode=PREFILL_CHUNK_BESIDE_DECODE,
        )
        self.vocab: Vocab = model.vocab
        self.n_ctx_sequence = self._context.n_ctx_sequence
        self._end_of_generation = model.vocab.end_of_generation
        self._observer = observer
        self._max_unfinished = max_sequences + max_waiting
        self._inbox: queue.SimpleQueue[tuple[str, Answer | None]] = queue.SimpleQueue()
        self._outbox: list[tuple[Answer, Output | Exception]] = []
        self._answers: dict[Sequence, Answer] = {}
        self.n_unfinished = 0
        self._report: StepReport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- the async face: called on the event loop

    def start(self) -> None:
        """Start the engine thread; answers are handed to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, prompt: Tokens[int], params: SamplingParams) -> Answer:
        """Queue a prompt (at least one token).

        Raises:
            RequestTooLong: Prompt and ``max_tokens`` exceed ``n_ctx_sequence``.
            QueueFull: Too many requests wait already.
            EngineError: The engine is closed.
        """
        if not prompt:
            raise ValueError("a prompt needs at least one token")
        if len(prompt) + params.max_tokens > self.n_ctx_sequence:
            raise RequestTooLong(len(prompt), params.max_tokens, self.n_ctx_sequence)
        if self.n_unfinished >= self._max_unfinished:
            raise QueueFull(f"{self.n_unfinished} requests are running or waiting")
        if not self._thread.is_alive():
            raise EngineError("the engine is not running")
        sequence = Sequence(
            list(prompt),
            params,
            make_sampler(params, self.vocab, prompt),
            Detokenizer(self.vocab, params.stop),
        )
        answer = Answer(self, sequence)
        self.n_unfinished += 1
        self._inbox.put(("submit", answer))
        return answer

    def cancel(self, answer: Answer) -> None:
        """Free what an unfinished answer holds, at the next step."""
        self._inbox.put(("cancel", answer))

    async def close(self) -> None:
        """Stop the thread, end unfinished answers with EngineError, free KV memory."""
        if self._thread.is_alive():
            self._inbox.put(("close", None))
            await asyncio.to_thread(self._thread.join)
        self._context.close()

    def _deliver(self, outbox: list[tuple[Answer, Output | Exception]], report: StepReport | None) -> None:
        for answer, output in outbox:
            if isinstance(output, Exception) or output.finish_reason is not None:
                self.n_unfinished -= 1
            answer.put(output)
        if report is not None and self._observer is not None:
            self._observer.on_step(report)

    # --- the engine thread

    def _run(self) -> None:
        while self._take_in():
            try:
                self._step()
            except Exception as error:
                logger.exception("a step failed; the running answers end here")
                self._end_all(EngineError(f"the engine failed: {error}"), waiting_too=False)
                self._note(Plan(), 0, 0.0)
            self._hand_out()
        self._end_all(EngineError("the server is shutting down"), waiting_too=True)
        self._hand_out()

    def _step(self) -> None:
        started = time.perf_counter()
        plan = self._scheduler.schedule()
        if plan.work:
            logits_at = self._decode(plan)
            generated = self._sample(plan, logits_at)
            self._finish(plan)
            self._note(plan, generated, time.perf_counter() - started)
        else:
            self._note(plan, 0, 0.0)

    def _take_in(self) -> bool:
        """Take new and cancelled requests; sleep while there is nothing else to do. False: close."""
        idle = not self._answers
        while True:
            try:
                what, answer = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if answer is None:
                return False
            idle = False
            if what == "submit":
                self._answers[answer._sequence] = answer
                self._scheduler.add(answer._sequence)
            elif self._answers.get(answer._sequence) is answer:
                self._release(answer._sequence)
                self._outbox.append((answer, EngineError("the answer was cancelled")))

    def _decode(self, plan: Plan) -> list[int]:
        """Compute the planned tokens; return for each piece of work where its last token is in the batch."""
        for move in plan.moves:
            self._context.move_sequence(move.source, move.target)
        self._batch.clear()
        logits_at = []
        for work in plan.work:
            sequence, begin = work.sequence, work.sequence.n_computed
            assert sequence.slot is not None
            tokens = sequence.tokens[begin : begin + work.n_tokens]
            logits_at.append(self._batch.add(tokens, begin, sequence.slot, logits=work.samples))
        self._context.decode(self._batch)
        for work in plan.work:
            work.sequence.n_computed += work.n_tokens
        return logits_at

    def _sample(self, plan: Plan, logits_at: Tokens[int]) -> int:
        """Choose a token for every sequence that is complete in KV memory; return how many."""
        generated = 0
        for work, index in zip(plan.work, logits_at, strict=True):
            if work.samples:
                sequence = work.sequence
                token = sequence.sampler.sample(self._context, index)
                text = sequence.append(token, ends=token in self._end_of_generation)
                self._outbox.append((self._answers[sequence], Output(token, text, sequence.finish_reason)))
                generated += 1
        return generated

    def _finish(self, plan: Plan) -> None:
        for work in plan.work:
            if work.sequence.finish_reason is not None:
                self._release(work.sequence)

    def _note(self, plan: Plan, generated: int, seconds: float) -> None:
        prefilled = sum(
            work.n_tokens for work in plan.work if work.sequence.n_computed <= len(work.sequence.prompt)
        )
        waiting = self._scheduler.n_waiting
        running = len(self._answers) - waiting
        self._report = StepReport(seconds, prefilled, generated, running, waiting)

    def _hand_out(self) -> None:
        """One call into the event loop a step, not one a token."""
        outbox, self._outbox = self._outbox, []
        report, self._report = self._report, None
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, outbox, report)

    def _release(self, sequence: Sequence) -> None:
        """Free all that a sequence holds."""
        del self._answers[sequence]
        slot = self._scheduler.remove(sequence)
        if slot is not None:
            self._context.clear_sequence(slot)
        sequence.sampler.close()

    def _end_all(self, error: EngineError, *, waiting_too: bool) -> None:
        """End the running answers with ``error``; those that wait have lost nothing and may stay."""
        for sequence, answer in list(self._answers.items()):
            if waiting_too or sequence.slot is not None:
                self._release(sequence)
                self._outbox.append((answer, error))
