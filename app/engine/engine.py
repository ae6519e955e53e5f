"""The engine: one thread that owns the context, and the async face that the service awaits."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Sequence as Tokens
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from app.engine.answer import Answer, EngineError, Output, QueueFull, RequestTooLong
from app.engine.cache.prefix_cache import MemoryKind, PrefixCache, StateStore
from app.engine.detokenizer import Detokenizer
from app.engine.llama import Batch, Context, KVOptions, Model, Vocab
from app.engine.pacing import LEAST_CHUNK, Pacing
from app.engine.prompt_lookup import PromptLookup
from app.engine.report import Observer, StepReport
from app.engine.sampling.grammar import GrammarError
from app.engine.sampling.logprobs import logprobs_of
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.samplers import GreedySampler, make_sampler
from app.engine.scheduler import Limits, Scheduler, Work
from app.engine.sequence import Sequence

logger = logging.getLogger("tokenstream.engine")

# Tokens of waiting prompts in one step: llama.cpp computes at most 512 in one pass, more would only
# delay the next look at the inbox.
PREFILL_CHUNK = 512
# Draft tokens in one step, beside at most as many sequences (see docs/engine.md, Speculation).
DRAFT_TOKENS = 16
SPECULATE_UP_TO = 2


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is set up.

    Attributes:
        n_ctx: KV memory in tokens, for all sequences.
        max_sequences: Answers that are generated at once.
        n_threads: Threads that compute.
        max_requests: Requests that run or wait.
        kv: Layout, attention and number format of KV memory.
        prefix_bytes: What saved prefixes may take in RAM.
        itl_budget: The longest step, in seconds, while answers stream; None derives it from measured times.
        speculation: Whether answers are guessed ahead where their text repeats itself.
        states: Where contexts outlive the process; None: nowhere.
    """

    n_ctx: int
    max_sequences: int
    n_threads: int
    max_requests: int = 128
    kv: KVOptions = field(default_factory=KVOptions)
    prefix_bytes: int = 256 << 20
    itl_budget: float | None = None
    speculation: bool = True
    states: StateStore | None = None

    @property
    def n_batch(self) -> int:
        """The most tokens of one step."""
        return PREFILL_CHUNK + LEAST_CHUNK + self.max_sequences + DRAFT_TOKENS

    @property
    def n_outputs(self) -> int:
        """The most logits of one step."""
        return self.max_sequences + DRAFT_TOKENS


class Engine:
    """Continuous batching over one model: every step carries one token of each running sequence, guesses
    behind some of them, and a chunk of waiting prompts."""

    def __init__(
        self,
        model: Model,
        options: EngineOptions,
        observer: Observer | None = None,
        turns: AbstractContextManager[None] | None = None,
    ) -> None:
        """Reserve KV memory; ``turns`` are shared with others who compute on the same cores.

        Raises:
            ModelLoadError: There is not enough memory.
        """
        self._context = Context(
            model,
            n_ctx=options.n_ctx,
            n_sequences=options.max_sequences,
            n_batch=options.n_batch,
            n_outputs=options.n_outputs,
            n_threads=options.n_threads,
            kv=options.kv,
        )
        self._batch = Batch(options.n_batch)
        shared = options.kv.layout == "shared"
        kind = MemoryKind(not (model.is_recurrent or model.n_window), shares_cells=shared)
        self._cache = PrefixCache(self._context, kind, options.prefix_bytes, options.states)
        self._pacing = Pacing(options.itl_budget)
        limits = Limits(
            n_slots=options.max_sequences,
            n_cells=options.n_ctx if shared else None,
            prefill_chunk=PREFILL_CHUNK,
            dense=not shared,
            speculate_up_to=SPECULATE_UP_TO,
            draft_tokens=DRAFT_TOKENS,
        )
        self._scheduler = Scheduler(limits, self._cache, self._pacing)
        self.vocab: Vocab = model.vocab
        self.n_ctx_sequence = self._context.n_ctx_sequence
        if shared and model.n_ctx_train > 0:  # a request could have all cells, and more than the model knows
            self.n_ctx_sequence = min(self.n_ctx_sequence, model.n_ctx_train)
        self._end_of_generation = model.vocab.end_of_generation
        # What a recurrent memory took in of a wrong guess cannot be taken out again.
        self._speculates = options.speculation and not model.is_recurrent
        self._observer = observer
        self._turns = turns or nullcontext()
        self._max_requests = options.max_requests
        self._inbox: queue.SimpleQueue[tuple[str, Answer | None]] = queue.SimpleQueue()
        self._outbox: list[tuple[Answer, Output | Exception | None]] = []
        self._answers: dict[Sequence, Answer] = {}
        self.n_unfinished = 0
        self._report = StepReport()
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
        if self.n_unfinished >= self._max_requests:
            raise QueueFull(f"{self.n_unfinished} requests are running or waiting")
        return self._submit(
            Sequence(
                list(prompt),
                params,
                make_sampler(params, self.vocab, prompt),
                Detokenizer(self.vocab, params.stop, keeps_stop=params.keeps_stop, visible=params.visible),
                PromptLookup() if self._speculates else None,
            )
        )

    async def warm(self, prefix: Tokens[int]) -> int:
        """Have a prefix ready that many prompts begin with: from disk, or computed and saved there.

        Returns:
            How many of its tokens had to be computed.

        Raises:
            EngineError: The engine is closed, or could not compute it.
        """
        nothing = SamplingParams(max_tokens=0, temperature=0)
        sampler = GreedySampler(nothing, self.vocab, ())
        detokenizer = Detokenizer(self.vocab)
        answer = self._submit(Sequence(list(prefix), nothing, sampler, detokenizer, is_context=True))
        async for _ in answer:
            raise AssertionError("nothing is generated behind a context")
        return answer.n_prompt - answer.n_cached

    def _submit(self, sequence: Sequence) -> Answer:
        if not self._thread.is_alive():
            raise EngineError("the engine is not running")
        answer = Answer(sequence, self.cancel)
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

    def _deliver(self, outbox: list[tuple[Answer, Output | Exception | None]], report: StepReport) -> None:
        for answer, output in outbox:
            if not isinstance(output, Output) or output.finish_reason is not None:
                self.n_unfinished -= 1
            answer.put(output)
        if self._observer is not None:
            self._observer.on_step(report)

    # --- the engine thread

    def _run(self) -> None:
        while self._take_in():
            try:
                with self._turns:
                    self._step()
            except Exception as error:
                logger.exception("a step failed; the running answers end here")
                self._end_running(EngineError(f"the engine failed: {error}"))
            self._hand_out()
        for sequence, answer in list(self._answers.items()):
            self._release(sequence)
            self._outbox.append((answer, EngineError("the server is shutting down")))
        self._hand_out()

    def _step(self) -> None:
        started = time.perf_counter()
        work = self._scheduler.schedule()
        if work:
            rows = self._decode(work)
            self._sample(work, rows)
            self._finish(work)
            self._note(work, time.perf_counter() - started)

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
            sequence = answer.sequence
            if what == "submit" and sequence.is_context and self._cache.load_context(sequence.prompt):
                sequence.n_cached = len(sequence.prompt)
                self._outbox.append((answer, None))
            elif what == "submit":
                self._answers[sequence] = answer
                self._scheduler.add(sequence)
            elif self._answers.get(sequence) is answer:
                self._release(sequence)
                self._outbox.append((answer, EngineError("the answer was cancelled")))

    def _decode(self, work: list[Work]) -> list[int]:
        """Compute the work; return for each piece the first of its rows of logits."""
        self._batch.clear()
        rows = []
        for piece in work:
            sequence, begin = piece.sequence, piece.sequence.n_computed
            assert sequence.slot is not None
            tokens = sequence.tokens[begin : begin + piece.n_tokens] + piece.draft
            rows.append(self._batch.add(tokens, begin, sequence.slot, n_outputs=piece.n_outputs))
        self._context.decode(self._batch)
        for piece in work:
            piece.sequence.n_computed += piece.n_tokens
        return rows

    def _sample(self, work: list[Work], rows: list[int]) -> None:
        """Choose what follows every sequence that is complete in KV memory."""
        for piece, first_row in zip(work, rows, strict=True):
            sequence = piece.sequence
            if sequence.wants_all_logits and not sequence.is_decoding:
                self._score(piece, first_row)
            if piece.samples:
                try:
                    self._sample_one(piece, first_row + piece.n_outputs - len(piece.draft) - 1)
                except GrammarError as error:
                    answer = self._answers[sequence]
                    self._release(sequence)
                    self._outbox.append((answer, EngineError(f"the grammar cannot be kept to: {error}")))

    def _score(self, piece: Work, first_row: int) -> None:
        """Note what the model thought of a prompt's tokens."""
        sequence, n_top = piece.sequence, piece.sequence.params.prompt_logprobs
        assert n_top is not None
        begin = sequence.n_computed - piece.n_tokens
        for i, token in enumerate(sequence.prompt[begin + 1 : sequence.n_computed + 1]):
            logits = self._context.logits[first_row + i]
            sequence.prompt_logprobs.append(logprobs_of(logits, token, n_top))

    def _sample_one(self, piece: Work, first_row: int) -> None:
        """Choose tokens as long as they are those of the draft, and the one that follows.

        A token is drawn with the probability that the model gives it, whether it was guessed or not:
        the draft decides only how many are drawn in one step (Leviathan et al. 2023, with a draft that is
        certain of itself).
        """
        sequence, draft = piece.sequence, piece.draft
        n_accepted = 0
        for row in range(first_row, first_row + len(draft) + 1):
            token = self._choose(sequence, row)
            if sequence.finish_reason or n_accepted == len(draft) or token != draft[n_accepted]:
                break
            n_accepted += 1
        if draft:
            sequence.n_computed += n_accepted
            if n_accepted < len(draft):
                assert sequence.slot is not None
                self._context.truncate_sequence(sequence.slot, sequence.n_computed)
            sequence.report(len(draft), n_accepted)
            self._report = replace(
                self._report,
                draft_tokens=self._report.draft_tokens + len(draft),
                accepted_tokens=self._report.accepted_tokens + n_accepted,
            )

    def _choose(self, sequence: Sequence, row: int) -> int:
        """Choose a sequence's next token by a row of logits, and hand it out."""
        n_top = sequence.params.logprobs
        # A grammar's mask is written over them.
        logits = None if n_top is None else self._context.logits[row].copy()
        token = sequence.sampler.sample(self._context, row)
        logprobs = None if logits is None or n_top is None else logprobs_of(logits, token, n_top)
        text = sequence.append(token, ends=token in self._end_of_generation)
        output = Output(token, text, sequence.finish_reason, logprobs)
        self._outbox.append((self._answers[sequence], output))
        return token

    def _finish(self, work: list[Work]) -> None:
        for piece in work:
            sequence = piece.sequence
            if sequence.finish_reason is not None:
                self._release(sequence)
            elif not sequence.generates and not sequence.n_pending:
                if sequence.is_context:
                    self._cache.save_context(sequence)
                self._outbox.append((self._answers[sequence], None))
                self._release(sequence)

    def _note(self, work: list[Work], seconds: float) -> None:
        prefill = [p for p in work if p.sequence.n_computed <= len(p.sequence.prompt)]
        first = [p.sequence for p in prefill if p.sequence.n_computed - p.n_tokens == p.sequence.n_cached]
        n_prefill = sum(p.n_tokens for p in prefill)
        self._report = replace(
            self._report,
            seconds=seconds,
            prompt_tokens=n_prefill,
            cached_tokens=sum(s.n_cached for s in first),
            generated_tokens=sum(isinstance(output, Output) for _, output in self._outbox),
        )
        if not any(piece.n_outputs > 1 for piece in work):  # steps of the usual kind
            self._pacing.observe(seconds, len(work) - len(prefill), n_prefill)

    def _hand_out(self) -> None:
        """One call into the event loop a step, not one a token."""
        waiting = self._scheduler.n_waiting
        report = replace(
            self._report,
            running=len(self._answers) - waiting,
            waiting=waiting,
            cache=replace(self._cache.figures),
        )
        outbox, self._outbox, self._report = self._outbox, [], StepReport()
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, outbox, report)

    def _release(self, sequence: Sequence) -> None:
        """Free all that a sequence holds; its KV stays of use to others."""
        del self._answers[sequence]
        self._scheduler.remove(sequence)
        sequence.sampler.close()

    def _end_running(self, error: EngineError) -> None:
        """End the running answers; what their slots hold is not known. Who waits has lost nothing."""
        for sequence, answer in list(self._answers.items()):
            slot = sequence.slot
            if slot is not None:
                self._release(sequence)
                self._cache.drop(slot)
                if sequence.finish_reason is None:
                    self._outbox.append((answer, error))
