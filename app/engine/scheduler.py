"""Which tokens of which sequences go into the next batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from app.engine.cache.prefix_cache import Prefix, PrefixCache, Resident
from app.engine.pacing import LEAST_CHUNK, Pacing
from app.engine.sequence import Sequence

# A prefix that another sequence is about to have is waited for if it saves as many tokens.
_LEAST_TO_WAIT_FOR = 32


@dataclass(frozen=True, slots=True)
class Work:
    """The next ``n_tokens`` tokens of a sequence, and a guess at what follows them.

    ``samples`` says that they reach the sequence's end, so that logits are wanted there and behind every
    token of the guess.
    """

    sequence: Sequence
    n_tokens: int
    samples: bool
    draft: list[int] = field(default_factory=list)

    @property
    def n_outputs(self) -> int:
        """Behind how many of its last tokens logits are wanted."""
        if self.sequence.wants_all_logits and not self.sequence.is_decoding:
            return self.n_tokens
        return 1 + len(self.draft) if self.samples else 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step may hold.

    Attributes:
        n_slots: Sequences that run at once.
        n_cells: Tokens in KV memory, where sequences share it; None where each has cells of its own.
        prefill_chunk: Prompt tokens of one step while nobody decodes.
        dense: Whether a pass takes only slots that follow one another, with equally many tokens each.
        speculate_up_to: The most sequences with which drafts still come nearly free.
        draft_tokens: The most draft tokens of one step, or the most tokens beyond one a sequence that a
            prompt may have in a step whose every token's logits are wanted.
    """

    n_slots: int
    n_cells: int | None = None
    prefill_chunk: int = 512
    dense: bool = True
    speculate_up_to: int = 2
    draft_tokens: int = 16


class SequenceFault(Exception):
    """Scheduling failed because of one sequence, which is to be dropped."""

    def __init__(self, sequence: Sequence, error: Exception) -> None:
        super().__init__(str(error))
        self.sequence, self.error = sequence, error


@contextmanager
def _concerning(sequence: Sequence) -> Iterator[None]:
    """Attribute exceptions to a sequence."""
    try:
        yield
    except Exception as error:
        raise SequenceFault(sequence, error) from error


class Scheduler:
    """Admits sequences into slots and shares out each step.

    Least remaining prefill first, and waiting counts as progress: who has waited as long as its prefill
    takes goes before any that come later. A prompt waits while another sequence computes a prefix that
    they share, and takes it over then.

    Prompts are prefilled in chunks that running streams can bear (``Pacing``). In the split layout the
    slots in use are kept dense (0, 1, 2, …): a gap between them costs a second pass over the weights at
    every step, moving the last sequence into the gap costs one copy.
    """

    def __init__(self, limits: Limits, cache: PrefixCache, pacing: Pacing) -> None:
        self._limits = limits
        self._cache = cache
        self._pacing = pacing
        self._slots: list[Sequence | None] = [None] * limits.n_slots
        self._waiting: dict[Sequence, tuple[int, Prefix] | None] = {}  # with the last lookup's result

    @property
    def running(self) -> list[Sequence]:
        """The sequences that have a slot, in the order of slots."""
        return [s for s in self._slots if s is not None]

    @property
    def n_running(self) -> int:
        return len(self.running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._slots or sequence in self._waiting

    def add(self, sequence: Sequence) -> None:
        """Take in a sequence."""
        self._waiting[sequence] = None

    def remove(self, sequence: Sequence) -> None:
        """Remove a finished or cancelled sequence. Its KV stays in the slot for reuse."""
        slot = sequence.slot
        if slot is None:
            self._waiting.pop(sequence, None)
        else:
            self._cache.leave(sequence)
            self._slots[slot] = None

    def drop(self, sequence: Sequence) -> None:
        """Remove a sequence after a fault and erase its slot, whose contents are unknown."""
        self._waiting.pop(sequence, None)
        if sequence in self._slots:
            slot = self._slots.index(sequence)
            self._cache.drop(slot)
            self._slots[slot] = None
        sequence.slot = None

    def schedule(self) -> list[Work]:
        """Plan the next step, in the order of slots; empty when there is nothing to do.

        Raises:
            SequenceFault: One sequence cannot be scheduled and must be dropped; the others are unaffected.
        """
        self._admit()
        self._save_branches()
        if self._limits.dense:
            self._close_gaps()
        return list(self._share_out())

    # --- who runs

    def _admit(self) -> None:
        free = {slot for slot, holder in enumerate(self._slots) if holder is None}
        if not free or not self._waiting:
            return
        prefilling = [s for s in self.running if not s.is_decoding]
        room = self._chunk() - sum(s.n_pending for s in prefilling)
        for sequence in sorted(self._waiting, key=self._urgency):
            if self._is_expecting(sequence):
                continue
            overtakes = all(self._urgency(sequence) < self._urgency(other) for other in prefilling)
            if not free or not (room > 0 or overtakes):
                break
            with _concerning(sequence):
                if not self._has_cells(sequence):
                    break
                slot = self._choose_slot(sequence, free)
            self._occupy(slot, sequence)
            free.remove(slot)
            prefilling.append(sequence)
            room -= sequence.n_pending

    def _occupy(self, slot: int, sequence: Sequence) -> None:
        with _concerning(sequence), self._erasing_on_fault(slot):
            self._cache.occupy(slot, sequence)
        del self._waiting[sequence]
        self._slots[slot] = sequence

    @contextmanager
    def _erasing_on_fault(self, slot: int) -> Iterator[None]:
        """Erase a slot that an exception leaves in an unknown state."""
        try:
            yield
        except Exception:
            self._cache.drop(slot)
            raise

    def _urgency(self, sequence: Sequence) -> float:
        """The time at which it would have its first token if it had run alone: earlier goes first."""
        n_known = sequence.n_computed
        if sequence in self._waiting:
            n_known = self._prefix(sequence).n_tokens
        n_remaining = len(sequence.tokens) - n_known
        return sequence.submitted_at + n_remaining * self._pacing.prefill_seconds_per_token

    def _prefix(self, sequence: Sequence) -> Prefix:
        known = self._waiting[sequence]
        if known is not None and known[0] == self._cache.version:
            prefix = known[1]
            provider = prefix.expected_from
            if provider is None or provider.n_computed < prefix.n_expected:
                return prefix
        with _concerning(sequence):
            prefix = Prefix() if sequence.wants_all_logits else self._cache.lookup(sequence.tokens)
        self._waiting[sequence] = (self._cache.version, prefix)
        return prefix

    def _is_expecting(self, sequence: Sequence) -> bool:
        prefix = self._prefix(sequence)
        return prefix.n_expected - prefix.n_tokens >= _LEAST_TO_WAIT_FOR

    def _has_cells(self, sequence: Sequence) -> bool:
        """Reserve what the sequence may come to need, evicting what finished ones left."""
        n_cells = self._limits.n_cells
        if n_cells is None:
            return True
        n_reserved = sum(s.n_most for s in self.running) + sequence.n_most
        if n_reserved > n_cells:
            return False
        while n_reserved + self._cache.n_idle > n_cells and self._cache.evict_idle():
            pass
        return True

    def _choose_slot(self, sequence: Sequence, free: set[int]) -> int:
        """The slot that holds the longest prefix, else the one that loses least; low ones, to stay dense."""
        n_soon = len(self.running) + len(self._waiting)
        low = {slot for slot in free if slot < n_soon} or free
        held = self._cache.slot_with(sequence.tokens, low)
        if held is not None:
            return held
        return min(low, key=lambda slot: (self._cache.n_idle_tokens(slot), slot))

    def _close_gaps(self) -> None:
        running = self.running
        for gap in range(len(running)):
            if self._slots[gap] is None:
                last = running.pop()
                source = last.slot
                assert source is not None
                with _concerning(last), self._erasing_on_fault(gap):
                    self._cache.move(last, gap)
                self._slots[source], self._slots[gap] = None, last

    # --- what runs

    def _chunk(self) -> int:
        n_decoding = sum(s.is_decoding for s in self.running)
        return self._pacing.chunk(n_decoding, self._limits.prefill_chunk)

    def _share_out(self) -> Iterator[Work]:
        running = self.running
        decoding = [s for s in running if s.is_decoding]
        grants = dict.fromkeys(decoding, 1)
        budget = self._chunk()
        n_logits = self._limits.draft_tokens
        # Beside decodes every prompt gets at least one token: without it its slot would be a gap.
        least = 1 if decoding and self._limits.dense else 0
        for sequence in sorted((s for s in running if not s.is_decoding), key=self._urgency):
            n_tokens = max(budget, least)
            if LEAST_CHUNK <= n_tokens < sequence.n_pending < n_tokens + LEAST_CHUNK:
                n_tokens = sequence.n_pending  # a short rest would cost a pass of its own
            n_tokens = min(n_tokens, sequence.n_pending, self._to_next_branch(sequence))
            if sequence.wants_all_logits:
                n_tokens = min(n_tokens, n_logits + 1)
                n_logits -= max(n_tokens - 1, 0)
            grants[sequence] = n_tokens
            budget -= n_tokens
        drafts = self._drafts(decoding) if n_logits == self._limits.draft_tokens else {}
        for sequence in running:
            if n_tokens := grants[sequence]:
                samples = n_tokens == sequence.n_pending and sequence.generates
                yield Work(sequence, n_tokens, samples, drafts.get(sequence, []))

    def _drafts(self, decoding: list[Sequence]) -> dict[Sequence, list[int]]:
        """Guesses, where the batch is so small that verifying them costs little."""
        if not 0 < len(decoding) <= self._limits.speculate_up_to:
            return {}
        drafts = {}
        for sequence in decoding:
            limit = self._limits.draft_tokens // len(decoding)
            limit = min(limit, sequence.n_most - len(sequence.tokens) - 1)
            with _concerning(sequence):
                drafts[sequence] = sequence.propose(limit)
        if self._limits.dense and len(decoding) > 1:
            # Sequences with unequal numbers of tokens would take a pass over the weights for each number.
            shortest = min(len(drafts.get(s, [])) for s in decoding)
            drafts = {s: draft[:shortest] for s, draft in drafts.items()}
        return drafts

    # --- memory that cannot be cut back: prefixes are shared where they end

    def _save_branches(self) -> None:
        """Save the prefixes that are complete now and whose takers found no slot."""
        if self._cache.kind.can_be_cut:
            return
        for sequence in list(self._waiting):
            source = self._prefix(sequence).source
            if isinstance(source, Resident) and source.sequence is not None:
                with _concerning(sequence):
                    self._cache.save_prefix(source.sequence)

    def _to_next_branch(self, sequence: Sequence) -> int:
        """How many tokens there are to where a waiting sequence parts from this one."""
        if self._cache.kind.can_be_cut:
            return sequence.n_pending
        prefixes = [known[1] for known in self._waiting.values() if known]
        stops = [prefix.n_expected for prefix in prefixes if prefix.expected_from is sequence]
        ahead = [stop - sequence.n_computed for stop in stops if stop > sequence.n_computed]
        return min(ahead, default=sequence.n_pending)
