"""The engine: an asyncio interface to the thread that runs the step loop."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial

from app.engine.answer import Answer, Computation, EngineError, QueueFull, RequestTooLong, Result
from app.engine.client import LOCAL, Client
from app.engine.detokenizer import Detokenizer
from app.engine.engine import Engine, EngineOptions
from app.engine.llama import DecodeAborted, Model, Vocab
from app.engine.prompt_lookup import PromptLookup
from app.engine.report import Observer, StepReport
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.samplers import make_sampler
from app.engine.scoring import Question, ScoringSequence
from app.engine.sequence import AnswerSequence, Sequence
from app.engine.thoughts import ThoughtReader

__all__ = ["Engine", "EngineOptions"]

logger = logging.getLogger("tokenstream.engine")


class AsyncEngine:
    """Continuous batching over one model, on a dedicated thread.

    Methods are called on the event loop. All unfinished answers are registered there, so each one ends
    even if the thread fails.

    Attributes:
        n_ctx_sequence: Maximum tokens of prompt and answer together.
        failure: The exception that ended the engine; None while it runs and after ``close``.
    """

    def __init__(
        self,
        model: Model,
        options: EngineOptions,
        observer: Observer | None = None,
        compute_lock: AbstractContextManager[None] | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Reserve KV memory.

        Args:
            model: The weights. Close them after the engine.
            options: Sizes and switches.
            observer: Receives a report of every step, on the event loop.
            compute_lock: Held during each step. Excludes other computations on the same cores.
            on_failure: Called once, on the event loop, if an exception ends the engine.

        Raises:
            ModelLoadError: Not enough memory.
        """
        self._core = Engine(model, options)
        self.vocab: Vocab = model.vocab
        self.n_ctx_sequence = self._core.n_ctx_sequence
        # Rejected draft tokens cannot be removed from a recurrent state.
        self._speculates = options.speculation and not model.is_recurrent
        self._max_sequences = options.max_sequences
        self._adapters = model.adapters
        self._observer = observer
        self._compute_lock = compute_lock or nullcontext()
        self._on_failure = on_failure
        self.failure: BaseException | None = None
        self._answers: dict[Sequence, Answer | Computation] = {}  # unfinished; used on the event loop only
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()  # None: close
        self._accepts = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._supervise, name="engine", daemon=True)

    # --- on the event loop

    @property
    def n_unfinished(self) -> int:
        """Number of running and waiting requests."""
        return sum(not sequence.is_background for sequence in self._answers)

    @property
    def decode_seconds(self) -> float:
        """Measured seconds of a decode step of one sequence; 0: not measured."""
        return self._core.decode_seconds

    @property
    def is_streaming(self) -> bool:
        """Whether answers are decoded. Callable from any thread."""
        return self._core.is_streaming

    def start(self) -> None:
        """Start the engine thread. Answers arrive on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        self._accepts = True

    def submit(
        self,
        prompt: Tokens[int],
        params: SamplingParams,
        client: Client = LOCAL,
        *,
        adapter: str = "",
        checkpoints: Tokens[int] = (),
        request_id: str = "",
    ) -> Answer:
        """Queue a prompt of at least one token.

        Args:
            prompt: Token ids.
            params: Sampling parameters.
            client: Origin of the request.
            adapter: Name of an adapter of the model; empty: the model alone.
            checkpoints: Lengths of the prompt at which later prompts may diverge, in order. Without effect
                if the memory of the model can be truncated.
            request_id: Appears in log lines.

        Raises:
            RequestTooLong: Prompt and ``max_tokens`` exceed ``n_ctx_sequence``.
            QueueFull: The client has its maximum number of running and waiting requests.
            EngineError: The engine is closed or has failed.
        """
        self._check_tokens(prompt)
        if len(prompt) + params.max_tokens > self.n_ctx_sequence:
            raise RequestTooLong(len(prompt), params.max_tokens, self.n_ctx_sequence)
        self._check_limit(client)
        thinking, vocab = params.thinking, self.vocab
        is_constrained = params.grammar is not None
        thoughts = ThoughtReader(thinking, vocab, is_constrained=is_constrained) if thinking else None
        sequence = AnswerSequence(
            list(prompt),
            params,
            make_sampler(params, vocab, prompt, thoughts),
            Detokenizer(vocab, params.stop, keeps_stop=params.keeps_stop, visible=params.visible),
            PromptLookup() if self._speculates else None,
            thoughts,
            client=client,
            adapter=adapter,
            checkpoints=[n for n in checkpoints if 0 < n < len(prompt)],
            request_id=request_id,
        )
        answer = Answer(sequence, self.cancel)
        self._submit(sequence, answer)
        return answer

    async def score(
        self,
        prompt: Tokens[int],
        questions: Tokens[Question],
        client: Client = LOCAL,
        *,
        adapter: str = "",
        checkpoints: Tokens[int] = (),
        request_id: str = "",
    ) -> ScoringSequence:
        """Score the options of questions that continue a prompt. Cancelling the call frees its slot.

        ``client``, ``adapter``, ``checkpoints`` and ``request_id``: see ``submit``.

        Returns:
            The completed sequence, with its ``logprobs``.

        Raises:
            RequestTooLong: The prompt and a question with an option exceed ``n_ctx_sequence``.
            QueueFull: The client has its maximum number of running and waiting requests.
            EngineError: The engine is closed or has failed, or the computation failed.
        """
        parts = [part for question in questions for part in (question.tokens, *question.options)]
        for tokens in (prompt, *parts):
            self._check_tokens(tokens)
        longest = max(len(q.tokens) + max(map(len, q.options)) for q in questions)
        if len(prompt) + longest > self.n_ctx_sequence:
            raise RequestTooLong(len(prompt) + longest, 0, self.n_ctx_sequence)
        self._check_limit(client)
        sequence = ScoringSequence(
            list(prompt),
            tuple(questions),
            client=client,
            adapter=adapter,
            checkpoints=[n for n in checkpoints if 0 < n <= len(prompt)],
            request_id=request_id,
        )
        await self._compute(sequence)
        return sequence

    def _check_tokens(self, tokens: Tokens[int]) -> None:
        if not tokens or min(tokens) < 0 or max(tokens) >= self.vocab.n_tokens:
            raise ValueError("a prompt must have at least one token, and all must be in the vocabulary")

    def _check_limit(self, client: Client) -> None:
        if client.max_waiting is None:
            return
        limit = min(client.max_running or self._max_sequences, self._max_sequences) + client.max_waiting
        n_unfinished = sum(sequence.client.name == client.name for sequence in self._answers)
        if n_unfinished >= limit:
            raise QueueFull(f"{n_unfinished} requests of client {client.name} are running or waiting")

    async def warm(self, prefix: Tokens[int], adapter: str = "") -> int:
        """Make a shared prefix available: load it from disk, or compute it and save it there.

        Returns:
            Number of computed tokens.

        Raises:
            EngineError: The engine is closed, or the computation failed.
        """
        sequence = Sequence(list(prefix), is_context=True, adapter=adapter)
        await self._compute(sequence)
        return len(prefix) - sequence.n_cached

    async def prefill_ahead(self, prefix: Tokens[int], adapter: str = "") -> None:
        """Compute a prefix that a later prompt may have. A request that arrives ends the computation.

        No effect beside other requests, and if a prompt with the prefix would be too long.

        Raises:
            EngineError: The engine is closed, or the computation failed.
        """
        if len(prefix) < self.n_ctx_sequence:
            await self._compute(Sequence(list(prefix), is_background=True, adapter=adapter))

    async def _compute(self, sequence: Sequence) -> None:
        computation = Computation()
        self._submit(sequence, computation)
        try:
            await computation.wait()
        except asyncio.CancelledError:
            self._inbox.put(partial(self._core.cancel, sequence))
            raise

    def _submit(self, sequence: Sequence, answer: Answer | Computation) -> None:
        if not self._accepts:
            raise self._error()
        if sequence.adapter and sequence.adapter not in self._adapters:
            raise ValueError(f"adapter {sequence.adapter!r} should be one of {', '.join(self._adapters)}")
        self._inbox.put(partial(self._core.add, sequence))
        self._answers[sequence] = answer

    def cancel(self, answer: Answer) -> None:
        """End an unfinished answer and free its slot before the next step."""
        self._inbox.put(partial(self._core.cancel, answer.sequence))

    async def close(self) -> None:
        """Stop the thread, end unfinished answers with EngineError, free KV memory."""
        if self._thread.is_alive():
            self._stop()
            await asyncio.to_thread(self._thread.join)
        self._core.close()

    def _stop(self) -> None:
        self._accepts = False
        self._inbox.put(None)
        self._core.abort()

    def _deliver(self, results: list[tuple[Sequence, Result]], report: StepReport) -> None:
        if self.failure is not None:
            return  # outputs before these are lost
        try:
            for sequence, result in results:
                if answer := self._answers.get(sequence):
                    answer.put(result)
                    if not isinstance(result, list) or result[-1].finish_reason is not None:
                        del self._answers[sequence]
        except BaseException as error:
            self.failure = error
            logger.critical("outputs cannot be delivered; all requests end", exc_info=error)
            self._stop()
        else:
            if self._observer is not None:
                self._observer.on_step(report)

    def _thread_ended(self, failure: BaseException | None) -> None:
        self._accepts = False
        self.failure = self.failure or failure
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer.put(self._error())
        if self.failure is not None and self._on_failure is not None:
            self._on_failure(self.failure)
        for sequence in answers:
            sequence.close()

    def _error(self) -> EngineError:
        if self.failure is not None:
            return EngineError(f"the engine failed: {self.failure}")
        return EngineError("the server is shutting down")

    # --- on the engine thread

    def _supervise(self) -> None:
        """Run the step loop and report its end to the event loop."""
        failure: BaseException | None = None
        try:
            self._run()
        except BaseException as error:
            failure = error
            logger.critical("the engine thread failed; all requests end", exc_info=error)
        finally:
            self._call(partial(self._thread_ended, failure))

    def _run(self) -> None:
        while self._take_in():
            try:
                with self._compute_lock:
                    self._core.step()
            except DecodeAborted:  # by close()
                return
            # One call per step, not one per token.
            self._call(partial(self._deliver, *self._core.take_results()))

    def _take_in(self) -> bool:
        """Add and cancel requests. Blocks while the core is idle. False: close."""
        is_idle = self._core.is_idle
        while True:
            try:
                command = self._inbox.get(block=is_idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            is_idle = False

    def _call(self, function: Callable[[], None]) -> None:
        """Call a function on the event loop. A closed loop has no readers."""
        assert self._loop is not None
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)
