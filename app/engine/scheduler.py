"""Admission of sequences to slots, and the tokens of each step."""

from __future__ import annotations

import bisect
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from app.engine.cache.kv_state import Prefix, Resident
from app.engine.cache.prefix_cache import PrefixCache
from app.engine.client import Client
from app.engine.pacing import MIN_CHUNK, Pacing
from app.engine.sequence import Sequence
from app.engine.shares import Shares, victim
from app.engine.slots import Slots

# A sequence waits for a prefix in progress if that saves at least this many tokens.
_MIN_SAVED_BY_WAITING = 32


@dataclass(frozen=True, slots=True)
class Work:
    """The tokens of one sequence in a step.

    Attributes:
        sequence: The sequence.
        n_tokens: Number of pending tokens to compute.
        n_outputs: Number of last tokens, with the draft, whose logits are needed.
        decodes: Whether the sequence is decoding. If not, the tokens are prefill.
        draft: Draft tokens after the last one.
    """

    sequence: Sequence
    n_tokens: int
    n_outputs: int
    decodes: bool
    draft: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a step.

    Attributes:
        n_slots: Maximum running sequences.
        prefill_chunk: Maximum prompt tokens per step.
        speculate_up_to: Maximum decoding sequences with drafts.
        draft_tokens: Maximum draft tokens per step. Also caps the logits of prompt tokens.
    """

    n_slots: int
    prefill_chunk: int = 512
    speculate_up_to: int = 2
    draft_tokens: int = 16


class SequenceFault(Exception):
    """An exception in scheduling that concerns one sequence; the caller must drop it."""

    def __init__(self, sequence: Sequence, error: Exception) -> None:
        super().__init__(str(error))
        self.sequence, self.error = sequence, error


class Scheduler:
    """Admits sequences into slots and plans each step.

    Clients take turns by their computed tokens. The order of a client is least remaining prefill first, with
    waiting time counted as progress. So a sequence is overtaken only by sequences that arrive during the time
    of its prefill. A prompt waits while another sequence computes a prefix that both share.

    If no slot is free, a client with few slots takes one of a client with more. The suspended sequence
    waits, and its KV stays reusable.

    ``Pacing`` bounds the prefill of a step. The slots of an adapter stay contiguous: a gap costs a second
    pass over the weights at every step. Moving a sequence costs one copy.
    """

    def __init__(self, limits: Limits, cache: PrefixCache, pacing: Pacing) -> None:
        self._limits = limits
        self._cache = cache
        self._pacing = pacing
        self._shares = Shares()
        self._slots = Slots(limits.n_slots)
        # Waiting sequences, each with its last lookup and the cache version of that lookup.
        self._waiting: dict[Sequence, tuple[int, Prefix] | None] = {}

    @property
    def running(self) -> list[Sequence]:
        """Sequences with a slot, in slot order."""
        return self._slots.running

    @property
    def n_running(self) -> int:
        return len(self.running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._slots or sequence in self._waiting

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence for a slot."""
        self._shares.add(sequence.client)
        self._waiting[sequence] = None

    def remove(self, sequence: Sequence) -> None:
        """Remove a finished or cancelled sequence. Its KV stays in the slot for reuse."""
        slot = sequence.slot
        if slot is None:
            self._waiting.pop(sequence, None)
        else:
            self._cache.leave(sequence)
            self._slots.vacate(slot)
        self._shares.remove(sequence.client)

    def drop(self, sequence: Sequence) -> None:
        """Remove a sequence after a fault and erase its slot, whose contents are unknown."""
        if sequence in self:
            self._shares.remove(sequence.client)
        self._waiting.pop(sequence, None)
        if sequence in self._slots:
            self._cache.drop(self._slots.remove(sequence))
        sequence.slot = None

    def schedule(self) -> list[Work]:
        """Plan the next step.

        Returns:
            The work in slot order. Empty if no sequence runs or waits.

        Raises:
            SequenceFault: Scheduling one sequence failed. The others are unaffected.
        """
        self._admit()
        self._save_branches()
        self._save_checkpoints()
        self._close_gaps()
        work = list(self._plan())
        for piece in work:
            self._shares.charge(piece.sequence.client, piece.n_tokens)
        return work

    # --- admission

    def _admit(self) -> None:
        clients = {sequence.client for sequence in self._waiting}
        if not clients or not (self._slots.free or any(victim(client, self.running) for client in clients)):
            return
        prefilling = [s for s in self.running if not s.is_decoding]
        for sequence in sorted(self._waiting, key=self._turn):
            if self._waits_for_prefix(sequence) or not self._may_run(sequence.client):
                continue
            overtakes = all(self._turn(sequence) < self._turn(other) for other in prefilling)
            if not (overtakes or self._chunk(prefilling) > sum(s.n_pending for s in prefilling)):
                break
            if not self._slots.free:
                leaving = victim(sequence.client, self.running)
                if leaving is None:
                    continue
                self._suspend(leaving)
            slot = self._choose_slot(sequence)
            with self._concerning(sequence, slot):
                self._cache.occupy(slot, sequence)
            del self._waiting[sequence]
            self._slots.put(slot, sequence)
            if not sequence.was_suspended:
                sequence.admitted_at = time.perf_counter()
            prefilling = [s for s in self.running if not s.is_decoding]

    def _may_run(self, client: Client) -> bool:
        limit = client.max_running
        return limit is None or sum(s.client.name == client.name for s in self.running) < limit

    def _suspend(self, sequence: Sequence) -> None:
        """Return a running sequence to the queue. Its KV stays reusable."""
        slot = sequence.slot
        assert slot is not None
        with self._concerning(sequence, slot):
            self._cache.leave(sequence)
        self._slots.vacate(slot)
        sequence.was_suspended = True
        self._waiting[sequence] = None

    @contextmanager
    def _concerning(self, sequence: Sequence, slot: int | None = None) -> Iterator[None]:
        """Attribute an exception to a sequence, and erase ``slot``, whose contents are then unknown."""
        try:
            yield
        except Exception as error:
            if slot is not None:
                self._cache.drop(slot)
            raise SequenceFault(sequence, error) from error

    def _turn(self, sequence: Sequence) -> tuple[tuple[int, int], float]:
        """Sort key of a sequence: the turn of its client, then its own urgency."""
        return self._shares.turn(sequence.client), self._urgency(sequence)

    def _urgency(self, sequence: Sequence) -> float:
        """Expected time of the first token if the sequence ran alone. Lower values go first."""
        n_known = sequence.n_computed
        if sequence in self._waiting:
            n_known = self._prefix(sequence).n_tokens
        n_remaining = len(sequence.tokens) + sequence.n_later - n_known
        return sequence.submitted_at + n_remaining * self._pacing.prefill_seconds_per_token

    def _prefix(self, sequence: Sequence) -> Prefix:
        known = self._waiting[sequence]
        if known is not None and known[0] == self._cache.version:
            prefix = known[1]
            provider = prefix.expected_from
            if provider is None or provider.n_computed < prefix.n_expected:
                return prefix
        with self._concerning(sequence):
            prefix = self._cache.lookup(sequence.searched, sequence.adapter)
        self._waiting[sequence] = (self._cache.version, prefix)
        return prefix

    def _waits_for_prefix(self, sequence: Sequence) -> bool:
        prefix = self._prefix(sequence)
        return prefix.n_expected - prefix.n_tokens >= _MIN_SAVED_BY_WAITING

    def _choose_slot(self, sequence: Sequence) -> int:
        """The slot with the longest prefix of the prompt, otherwise the one with the fewest idle tokens."""
        n_waiting = sum(other.adapter == sequence.adapter for other in self._waiting)
        if not (places := self._slots.places(sequence.adapter, n_waiting)):
            self._close_gaps()
            places = self._slots.places(sequence.adapter, n_waiting)
        if not places:
            for move in self._slots.shift(sequence.adapter):
                self._move(*move)
            places = self._slots.places(sequence.adapter, n_waiting)
        with self._concerning(sequence):
            held = self._cache.slot_with(sequence, places)
            if held is not None:
                return held
            return min(places, key=lambda slot: (self._cache.n_idle_tokens(slot), slot))

    def _close_gaps(self) -> None:
        while move := self._slots.gap():
            self._move(*move)

    def _move(self, sequence: Sequence, target: int) -> None:
        with self._concerning(sequence, target):
            self._cache.move(sequence, target)
        self._slots.move(sequence, target)

    # --- the plan of a step

    def _chunk(self, prefilling: list[Sequence]) -> int:
        """Maximum prompt tokens of the step, of which the first sequence has most."""
        running = self.running
        if any(s.is_background for s in running):
            return MIN_CHUNK  # a request that arrives waits for the end of the step
        n_decoding = Counter(s.adapter for s in running if s.is_decoding)
        position = prefilling[0].n_computed if prefilling else 0
        return self._pacing.chunk(list(n_decoding.values()), self._limits.prefill_chunk, position)

    def _plan(self) -> Iterator[Work]:
        running = self.running
        decoding = [s for s in running if s.is_decoding]
        grants = dict.fromkeys(decoding, 1)
        prefilling = sorted((s for s in running if not s.is_decoding), key=self._turn)
        budget = self._chunk(prefilling)
        n_logits = self._limits.draft_tokens
        adapters = {s.adapter for s in decoding}
        for sequence in prefilling:
            # Beside decoding sequences, a slot without tokens is a gap: every prompt gets at least one token.
            n_tokens = max(budget, 1 if sequence.adapter in adapters else 0)
            if MIN_CHUNK <= n_tokens < sequence.n_pending < n_tokens + MIN_CHUNK:
                # A short remainder would cost another pass. Beside streams, two equal chunks keep the budget.
                n_tokens = -(-sequence.n_pending // 2) if decoding else sequence.n_pending
            n_tokens = min(n_tokens, sequence.n_pending, self._to_next_stop(sequence))
            n_tokens = min(n_tokens, sequence.n_silent + n_logits + 1)
            n_logits -= max(n_tokens - sequence.n_silent - 1, 0)
            grants[sequence] = n_tokens
            budget -= n_tokens
        drafts = self._drafts(decoding) if n_logits == self._limits.draft_tokens else {}
        for sequence in running:
            if n_tokens := grants[sequence]:
                draft = drafts.get(sequence, [])
                n_outputs = max(n_tokens - sequence.n_silent, 0) + len(draft)
                yield Work(sequence, n_tokens, n_outputs, sequence.is_decoding, draft)

    def _drafts(self, decoding: list[Sequence]) -> dict[Sequence, list[int]]:
        """Drafts of decoding sequences; empty for large batches, where verification costs too much."""
        if not 0 < len(decoding) <= self._limits.speculate_up_to:
            return {}
        drafts = {}
        for sequence in decoding:
            limit = self._limits.draft_tokens // len(decoding)
            limit = min(limit, sequence.max_length - len(sequence.tokens) - 1)
            with self._concerning(sequence):
                drafts[sequence] = sequence.propose(limit)
        if len(decoding) > len({s.adapter for s in decoding}):
            # Each distinct number of tokens would cost a pass over the weights.
            shortest = min(len(drafts.get(s, [])) for s in decoding)
            drafts = {s: draft[:shortest] for s, draft in drafts.items()}
        return drafts

    # --- memory that cannot be truncated: prefixes are shared only at their exact end

    def _save_branches(self) -> None:
        """Save prefixes that running sequences return to, or that waiting sequences without a slot share."""
        if self._cache.kind.truncatable:
            return
        for sequence in self.running:
            if sequence.n_computed == sequence.fork_at:
                with self._concerning(sequence):
                    self._cache.save_prefix(sequence)
                sequence.fork_at = None
        for sequence in list(self._waiting):
            source = self._prefix(sequence).source
            if isinstance(source, Resident) and source.sequence is not None:
                with self._concerning(sequence):
                    self._cache.save_prefix(source.sequence)

    def _save_checkpoints(self) -> None:
        """Save states of running sequences where later prompts may diverge."""
        if self._cache.kind.truncatable:
            return
        for sequence in self.running:
            n_passed = bisect.bisect_right(sequence.checkpoints, sequence.n_computed)
            is_at = n_passed > 0 and sequence.checkpoints[n_passed - 1] == sequence.n_computed
            del sequence.checkpoints[:n_passed]
            if is_at:
                with self._concerning(sequence):
                    self._cache.save_checkpoint(sequence)

    def _to_next_stop(self, sequence: Sequence) -> int:
        """Number of tokens up to the next checkpoint, or to where this or a waiting sequence diverges."""
        if self._cache.kind.truncatable:
            return sequence.n_pending
        prefixes = [known[1] for known in self._waiting.values() if known]
        stops = [prefix.n_expected for prefix in prefixes if prefix.expected_from is sequence]
        stops += sequence.checkpoints
        stops += [sequence.fork_at] if sequence.fork_at is not None else []
        ahead = [stop - sequence.n_computed for stop in stops if stop > sequence.n_computed]
        return min(ahead, default=sequence.n_pending)
