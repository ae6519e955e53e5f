"""Slots of KV memory, and where sequences are put so that few passes compute them."""

from __future__ import annotations

from app.engine.sequence import Sequence

Move = tuple[Sequence, int]  # a running sequence, and the free slot that it moves to


class Slots:
    """The running sequences by slot.

    One pass over the weights computes sequences of one adapter in contiguous slots: a gap, or a sequence of
    another adapter between them, costs another pass at every step. Free slots between adapters cost nothing.
    Plans only: the caller moves the KV of a sequence, then calls ``move``.
    """

    def __init__(self, n_slots: int) -> None:
        self._holders: list[Sequence | None] = [None] * n_slots

    @property
    def running(self) -> list[Sequence]:
        """Sequences with a slot, in slot order."""
        return [s for s in self._holders if s is not None]

    @property
    def free(self) -> set[int]:
        return {slot for slot, holder in enumerate(self._holders) if holder is None}

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._holders

    def put(self, slot: int, sequence: Sequence) -> None:
        self._holders[slot] = sequence

    def vacate(self, slot: int) -> None:
        self._holders[slot] = None

    def remove(self, sequence: Sequence) -> int:
        """Remove a running sequence. Returns its slot."""
        slot = self._holders.index(sequence)
        self._holders[slot] = None
        return slot

    def move(self, sequence: Sequence, target: int) -> None:
        self.remove(sequence)
        self._holders[target] = sequence

    # --- places

    def places(self, adapter: str, n_waiting: int) -> set[int]:
        """Free slots for one of ``n_waiting`` sequences of an adapter. Empty: others must move first.

        Beside running sequences of the adapter, all of them could be contiguous. Otherwise the slots are not
        within those of another adapter.
        """
        groups = self._by_adapter()
        own = groups.pop(adapter, [])
        if not own:
            within = {slot for other in groups.values() for slot in range(other[0], other[-1])}
            outside = self.free - within
            if groups:
                return self._farthest(outside)
            return {slot for slot in outside if slot < n_waiting} or outside
        first, last, n_all = own[0], own[-1], len(own) + n_waiting
        taken = [slot for other in groups.values() for slot in other]
        begin = max((slot + 1 for slot in taken if slot < first), default=0)
        end = min((slot for slot in taken if slot > last), default=len(self._holders))
        return self.free & set(range(max(begin, last - n_all + 1), min(end, first + n_all)))

    def _farthest(self, free: set[int]) -> set[int]:
        """The free slots that leave most room to the sequences of other adapters."""
        taken = set(range(len(self._holders))) - self.free
        distances = {slot: min(abs(slot - other) for other in taken) for slot in free}
        longest = max(distances.values(), default=0)
        return {slot for slot, distance in distances.items() if distance == longest}

    def gap(self) -> Move | None:
        """A move that fills a gap between sequences of an adapter."""
        free = self.free
        for own in self._by_adapter().values():
            gap = next((slot for slot in range(own[0], own[-1]) if slot in free), None)
            if gap is not None:
                return self._at(own[-1]), gap
        return None

    def shift(self, adapter: str) -> list[Move]:
        """Moves that free a slot beside those of an adapter, the first move first. Requires no gaps.

        Between the adapter and the nearest free slot, one sequence of each other adapter moves.
        """
        own = self._by_adapter()[adapter]
        ways = [way for way in (self._way(own[-1], 1), self._way(own[0], -1)) if way is not None]
        return min(ways, key=len)

    def _way(self, slot: int, direction: int) -> list[Move] | None:
        """Moves in one direction; None if it has no free slot."""
        nearest: list[int] = []  # the nearest slot of each adapter on the way
        before = self._at(slot).adapter
        while 0 <= (slot := slot + direction) < len(self._holders):
            holder = self._holders[slot]
            if holder is None:
                targets = [*nearest[1:], slot]
                return [(self._at(a), b) for a, b in zip(nearest, targets, strict=True)][::-1]
            if holder.adapter != before:
                nearest.append(slot)
            before = holder.adapter
        return None

    def _at(self, slot: int) -> Sequence:
        holder = self._holders[slot]
        assert holder is not None
        return holder

    def _by_adapter(self) -> dict[str, list[int]]:
        """Occupied slots of each adapter, in order."""
        groups: dict[str, list[int]] = {}
        for slot, holder in enumerate(self._holders):
            if holder is not None:
                groups.setdefault(holder.adapter, []).append(slot)
        return groups
