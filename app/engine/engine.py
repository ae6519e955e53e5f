"""The algorithm: continuous batching, one step at a time. Synchronous, for one thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from app.engine.answer import EngineError, Output, Result
from app.engine.cache.kv_state import MemoryKind, StateStore
from app.engine.cache.prefix_cache import PrefixCache
from app.engine.llama import Batch, Context, DecodeAborted, KVOptions, Model
from app.engine.pacing import MIN_CHUNK, Pacing
from app.engine.report import StepReport
from app.engine.sampling.grammar import GrammarError
from app.engine.sampling.logprobs import logprobs_of
from app.engine.scheduler import Limits, Scheduler, SequenceFault, Work
from app.engine.scoring import ScoringSequence
from app.engine.sequence import AnswerSequence, Sequence, Tier

logger = logging.getLogger("tokenstream.engine")

# Maximum prompt tokens per step. llama.cpp computes at most 512 tokens in one pass.
PREFILL_CHUNK = 512
# Maximum draft tokens per step, and maximum decoding sequences with drafts (docs/engine.md, Speculation).
DRAFT_TOKENS = 16
SPECULATE_UP_TO = 2


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Sizes and switches of an engine.

    Attributes:
        n_ctx: KV memory of all sequences, in tokens.
        max_sequences: Maximum running sequences.
        n_threads: Compute threads.
        kv: Attention and number format of KV memory.
        prefix_bytes: Maximum RAM of saved prefixes.
        itl_budget: Maximum seconds of a step while answers stream. None: derived from measured times.
        streams_elsewhere: Whether answers of another engine on the same cores stream.
        speculation: Draft repeated text by prompt lookup.
        states: Storage of context states across restarts. None: no storage.
    """

    n_ctx: int
    max_sequences: int
    n_threads: int
    kv: KVOptions = field(default_factory=KVOptions)
    prefix_bytes: int = 256 << 20
    itl_budget: float | None = None
    streams_elsewhere: Callable[[], bool] = lambda: False
    speculation: bool = True
    states: StateStore | None = None

    @property
    def n_batch(self) -> int:
        """Maximum tokens per step."""
        return PREFILL_CHUNK + MIN_CHUNK + self.max_sequences + DRAFT_TOKENS

    @property
    def n_outputs(self) -> int:
        """Maximum rows of logits per step."""
        return self.max_sequences + DRAFT_TOKENS


class Engine:
    """Continuous batching over one model.

    Each step computes one token of every decoding sequence, drafts after some of them, and a chunk of
    waiting prompts and questions. Results collect until ``take_results``.
    """

    def __init__(self, model: Model, options: EngineOptions) -> None:
        """Reserve KV memory.

        Raises:
            ModelLoadError: Not enough memory.
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
        self._adapters = model.adapters
        self._adapter = ""  # in use by the context
        kind = MemoryKind(
            truncatable=model.is_truncatable,
            divisible=not model.is_truncatable and model.has_attention,
        )
        self._cache = PrefixCache(self._context, kind, options.prefix_bytes, options.states)
        self._pacing = Pacing(options.itl_budget, options.streams_elsewhere)
        limits = Limits(
            n_slots=options.max_sequences,
            prefill_chunk=PREFILL_CHUNK,
            speculate_up_to=SPECULATE_UP_TO,
            draft_tokens=DRAFT_TOKENS,
        )
        self._scheduler = Scheduler(limits, self._cache, self._pacing)
        self.n_ctx_sequence = self._context.n_ctx_sequence
        self._end_of_generation = model.vocab.end_of_generation
        # Since the last take_results: outputs by sequence, and sequences that ended otherwise.
        self._outputs: dict[Sequence, list[Output]] = {}
        self._ends: list[tuple[Sequence, EngineError | None]] = []
        self._report = StepReport()

    @property
    def decode_seconds(self) -> float:
        """Measured seconds of a decode step of one sequence; 0: not measured."""
        return self._pacing.measured_decode_seconds(1)

    @property
    def is_streaming(self) -> bool:
        """Whether answers are decoded. Callable from any thread."""
        return any(sequence.is_decoding for sequence in self._scheduler.running)

    @property
    def is_idle(self) -> bool:
        return not self._scheduler.n_running and not self._scheduler.n_waiting

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. A context that is on disk is loaded and finishes at once.

        A sequence in the background ends when another one is added, or at once beside others.
        """
        if sequence.is_background and not self.is_idle:
            self._ends.append((sequence, None))
            return
        for other in self._scheduler.running:
            if other.is_background:
                self._end(other, None)
        try:
            is_loaded = sequence.is_context and self._cache.load_context(sequence.prompt, sequence.adapter)
        except Exception as error:
            self._fail(sequence, error)
            return
        if is_loaded:
            sequence.n_cached = len(sequence.prompt)
            self._ends.append((sequence, None))
        else:
            self._scheduler.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence and free its slot. No effect on a finished sequence."""
        self._end(sequence, EngineError("the answer was cancelled"))

    def _end(self, sequence: Sequence, result: EngineError | None) -> None:
        if sequence not in self._scheduler:
            return
        try:
            self._release(sequence)
        except Exception as error:
            self._fail(sequence, error)
        else:
            self._ends.append((sequence, result))

    def step(self) -> None:
        """Compute one batch per adapter. A fault ends only the affected sequences.

        Raises:
            DecodeAborted: ``abort`` was called.
            Exception: Any other fault. The engine's state is then unknown.
        """
        started = time.perf_counter()
        computed: list[Work] = []
        for work in self._passes(self._schedule()):
            begun = started if not computed else time.perf_counter()
            rows = self._decode(work)
            for piece, first_row in zip(work, rows, strict=False):
                try:
                    self._use_logits(piece, first_row)
                    self._finish(piece.sequence)
                except Exception as error:
                    self._fail(piece.sequence, error)
            if rows:
                computed += work
                self._observe(work, time.perf_counter() - begun)
        if computed:
            self._note(computed, time.perf_counter() - started)

    def take_results(self) -> tuple[list[tuple[Sequence, Result]], StepReport]:
        """Return and clear the results and the report since the last call."""
        report = replace(
            self._report,
            running=sum(not s.is_background for s in self._scheduler.running),
            waiting=self._scheduler.n_waiting,
            running_cells=sum(s.n_computed for s in self._scheduler.running),
            idle_cells=self._cache.n_idle,
            cache=replace(self._cache.figures),
        )
        results: list[tuple[Sequence, Result]] = [*self._outputs.items(), *self._ends]
        self._outputs, self._ends, self._report = {}, [], StepReport()
        return results, report

    def abort(self) -> None:
        """Abort the running decode and all later ones. Callable from any thread."""
        self._context.abort()

    def close(self) -> None:
        """Free KV memory."""
        self._context.close()

    # --- the parts of a step

    def _schedule(self) -> list[Work]:
        try:
            return self._scheduler.schedule()
        except SequenceFault as fault:
            self._fail(fault.sequence, fault.error)
            return []  # the next step plans without this sequence

    def _passes(self, work: list[Work]) -> list[list[Work]]:
        """The work by adapter, of which one decode has one. A change takes time: the current one is first."""
        passes: dict[str, list[Work]] = {}
        for piece in work:
            passes.setdefault(piece.sequence.adapter, []).append(piece)
        return [passes[name] for name in sorted(passes, key=lambda name: name != self._adapter)]

    def _decode(self, work: list[Work]) -> list[int]:
        """Compute work of one adapter.

        Returns:
            For each piece, the first of its rows of logits. Empty: nothing was computed.
        """
        self._adapter = work[0].sequence.adapter
        self._context.use_adapter(self._adapters[self._adapter] if self._adapter else None)
        self._batch.clear()
        rows = []
        for piece in work:
            sequence, begin = piece.sequence, piece.sequence.n_computed
            assert sequence.slot is not None
            tokens = sequence.tokens[begin : begin + piece.n_tokens] + piece.draft
            rows.append(self._batch.add(tokens, begin, sequence.slot, n_outputs=piece.n_outputs))
        try:
            self._context.decode(self._batch)
        except DecodeAborted:
            raise
        except Exception as error:
            for piece in work:
                self._fail(piece.sequence, error)
            return []
        for piece in work:
            piece.sequence.n_computed += piece.n_tokens
        return rows

    def _use_logits(self, piece: Work, first_row: int) -> None:
        """Score the options of questions, or score prompt tokens and choose the next ones of an answer."""
        sequence = piece.sequence
        if isinstance(sequence, ScoringSequence):
            sequence.read(self._context.logits[first_row : first_row + piece.n_outputs])
        elif isinstance(sequence, AnswerSequence):
            if sequence.scores_prompt and not piece.decodes:
                self._score(sequence, piece.n_tokens, first_row)
            if sequence.generates and not sequence.n_pending:
                row = first_row + piece.n_outputs - len(piece.draft) - 1
                self._choose_tokens(sequence, piece.draft, row)

    def _score(self, sequence: AnswerSequence, n_tokens: int, first_row: int) -> None:
        """Record the log-probabilities of prompt tokens."""
        n_top = sequence.params.prompt_logprobs
        assert n_top is not None
        begin = sequence.n_computed - n_tokens
        for i, token in enumerate(sequence.prompt[begin + 1 : sequence.n_computed + 1]):
            logits = self._context.logits[first_row + i]
            sequence.prompt_logprobs.append(logprobs_of(logits, token, n_top))

    def _choose_tokens(self, sequence: AnswerSequence, draft: list[int], first_row: int) -> None:
        """Sample tokens until one differs from the draft.

        Every token is sampled from the model's distribution. The draft decides only how many tokens a
        step yields (Leviathan et al. 2023, with a deterministic draft).
        """
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

    def _choose(self, sequence: AnswerSequence, row: int) -> int:
        """Sample the next token from a row of logits and emit it."""
        n_top = sequence.params.logprobs
        logits = self._context.logits[row]
        # A copy, because a grammar's mask overwrites the row.
        original = None if n_top is None else logits.copy()
        token = sequence.sampler.sample(logits)
        logprobs = None if original is None or n_top is None else logprobs_of(original, token, n_top)
        new = sequence.append(token, ends=token in self._end_of_generation)
        reason = sequence.finish_reason
        output = Output(token, new.answer, reason, logprobs, new.thought, new.is_thought)
        self._outputs.setdefault(sequence, []).append(output)
        return token

    def _finish(self, sequence: Sequence) -> None:
        """Release a sequence that is complete. Questions continue with their next branch."""
        if isinstance(sequence, AnswerSequence) and sequence.finish_reason is not None:
            self._release(sequence)
        elif not sequence.generates and not sequence.n_pending:
            n_shared = sequence.advance() if isinstance(sequence, ScoringSequence) else None
            if n_shared is not None:
                self._cache.rewind(sequence, n_shared)
                return
            if sequence.is_context:
                self._cache.save_context(sequence)
            self._release(sequence)
            self._ends.append((sequence, None))

    def _note(self, work: list[Work], seconds: float) -> None:
        prefill = [piece for piece in work if not piece.decodes]
        begun = [piece.sequence for piece in work if not piece.sequence.has_begun]
        first = [sequence for sequence in begun if not sequence.is_background]
        n_prefill = sum(p.n_tokens for p in prefill)
        hits: dict[Tier, int] = {}
        for sequence in first:
            sequence.has_begun = True
        looked_up = [sequence for sequence in first if not sequence.repeats_prompt]
        for sequence in looked_up:
            if sequence.cache_tier is not None:
                hits[sequence.cache_tier] = hits.get(sequence.cache_tier, 0) + sequence.n_cached
        self._report = replace(
            self._report,
            seconds=seconds,
            n_sequences=len(work),
            n_decoding=len(work) - len(prefill),
            n_tokens=sum(p.n_tokens + len(p.draft) for p in work),
            prompt_tokens=n_prefill,
            queried_tokens=sum(len(s.prompt) for s in looked_up),
            cached_tokens=sum(hits.values()),
            hits=hits,
            generated_tokens=sum(map(len, self._outputs.values())),
        )

    def _observe(self, work: list[Work], seconds: float) -> None:
        """Record the time of one pass."""
        if not any(piece.n_outputs > 1 for piece in work):  # drafts and scores distort the times
            prefill = [piece for piece in work if not piece.decodes]
            n_prefill = sum(piece.n_tokens for piece in prefill)
            n_positions = sum(
                piece.n_tokens * (piece.sequence.n_computed - piece.n_tokens / 2) for piece in prefill
            )
            self._pacing.observe(
                seconds, len(work) - len(prefill), n_prefill, n_positions / max(n_prefill, 1)
            )

    # --- the end of a sequence

    def _release(self, sequence: Sequence) -> None:
        """Free a sequence's slot. Its KV stays reusable."""
        self._scheduler.remove(sequence)
        sequence.close()

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """End a sequence with an error and erase its slot, whose contents are unknown."""
        if isinstance(error, GrammarError):
            message = f"no token continues the grammar: {error}"
        else:
            extra = {"request_id": sequence.request_id} if sequence.request_id else None
            logger.error("a fault ended one request", exc_info=error, extra=extra)
            message = f"the engine failed: {error}"
        self._scheduler.drop(sequence)
        sequence.close()
        self._ends.append((sequence, EngineError(message)))
