"""Which tokens of which sequences go into the next batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from app.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """The next ``n_tokens`` tokens of a sequence; ``samples`` says that they reach its end."""

    sequence: Sequence
    n_tokens: int
    samples: bool


@dataclass(frozen=True, slots=True)
class Move:
    """A sequence changes its id in KV memory."""

    source: int
    target: int


@dataclass(slots=True)
class Plan:
    """One step: moves in KV memory first, then one batch. The work is in the order of slots."""

    moves: list[Move] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)


class Scheduler:
    """First come, first served, into ``n_slots`` sequence ids of KV memory.

    Two rules make the batches cheap. A prompt is prefilled in chunks, small ones while other
    sequences decode, so that their next token does not wait for the whole of it. And the slots in use
    are kept dense (0, 1, 2, …): in the split KV layout a gap between sequence ids costs a second pass
    over the weights at every step, moving the last sequence into the gap costs one copy.
    """

    def __init__(self, n_slots: int, *, prefill_chunk: int, prefill_chunk_beside_decode: int) -> None:
        self._slots: list[Sequence | None] = [None] * n_slots
        self._waiting: deque[Sequence] = deque()
        self._chunk = prefill_chunk
        self._chunk_beside_decode = prefill_chunk_beside_decode

    @property
    def running(self) -> list[Sequence]:
        """The sequences that have a slot, in the order of slots."""
        return [s for s in self._slots if s is not None]

    @property
    def n_waiting(self) -> int:
        """How many sequences have no slot yet."""
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Take in a sequence; it runs when a slot is free and all before it have one."""
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> int | None:
        """Take out a sequence that is finished or not wanted any more.

        Returns:
            The slot that it leaves, whose KV memory is to be freed; None if it had none.
        """
        slot, sequence.slot = sequence.slot, None
        if slot is not None:
            self._slots[slot] = None
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        return slot

    def schedule(self) -> Plan:
        """Plan the next step; an empty one when there is nothing to do."""
        self._admit()
        return Plan(moves=list(self._close_gaps()), work=list(self._share_out()))

    def _admit(self) -> None:
        for slot, holder in enumerate(self._slots):
            if holder is None and self._waiting:
                sequence = self._waiting.popleft()
                self._slots[slot], sequence.slot = sequence, slot

    def _close_gaps(self) -> Iterator[Move]:
        running = self.running
        for gap in range(len(running)):
            if self._slots[gap] is None:
                last = running.pop()
                assert last.slot is not None
                if last.n_computed:
                    yield Move(last.slot, gap)
                self._slots[last.slot], self._slots[gap], last.slot = None, last, gap

    def _share_out(self) -> Iterator[Work]:
        running = self.running
        decoding = any(s.is_decoding for s in running)
        budget = self._chunk_beside_decode if decoding else self._chunk
        # Beside decodes every prompt gets at least one token: without it its slot would be a gap.
        least = 1 if decoding else 0
        grants = {id(s): 1 for s in running if s.is_decoding}
        for prompt in sorted((s for s in running if not s.is_decoding), key=lambda s: s.submitted_at):
            grants[id(prompt)] = min(prompt.n_pending, max(budget, least))
            budget -= grants[id(prompt)]
        for sequence in running:
            if n_tokens := grants[id(sequence)]:
                yield Work(sequence, n_tokens, samples=n_tokens == sequence.n_pending)
