"""Saved states within a budget of bytes: their values, and the order in which they are evicted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Sequence as Tokens

from app.engine.cache.kv_state import CacheFigures, MemoryKind, Resident, Saved, State
from app.engine.cache.prefix_trees import PrefixTrees


class SavedStates:
    """Saved states, in the order of their last use.

    The least recently used state is evicted first, contexts last. States that cannot be truncated differ in
    value: a use sets the priority of a state to the highest evicted priority plus its value, and the lowest
    priority is evicted first (GreedyDual-Size, Cao and Irani 1997).

    Attributes:
        budget: Maximum bytes of all states.
        n_changes: Number of states that were added or removed.
    """

    def __init__(self, trees: PrefixTrees, kind: MemoryKind, budget: int, *, has_files: bool) -> None:
        """Create an empty store.

        Args:
            trees: Get an item for every state.
            kind: Abilities of KV memory.
            budget: Maximum bytes of all states.
            has_files: Whether evicted contexts are still on disk.
        """
        self.budget = budget
        self.figures = CacheFigures()
        self.n_changes = 0
        self._trees = trees
        self._kind = kind
        self._has_files = has_files
        self._states: dict[Saved, None] = {}  # least recently used first
        self._clock = 0.0  # the highest evicted priority

    def __iter__(self) -> Iterator[Saved]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def keep(self, saved: Saved) -> None:
        """Add a state, after ``make_room``."""
        saved.priority = self._clock + saved.value
        self._states[saved] = None
        self.figures.n_bytes += saved.n_bytes
        self.figures.n_states = len(self._states)
        self._trees.insert(saved)
        self.n_changes += 1
        if self._kind.divisible and not saved.is_partial:
            self._lower_values(saved)

    def _lower_values(self, new: Saved) -> None:
        """Lower the values of complete states whose keys and values ``new`` also has."""
        for _, item in self._trees.matches(new.tokens, new.adapter):
            if isinstance(item, Saved) and item is not new and not item.is_partial:
                item.value = min(item.value, self.value(item, item.n_bytes, item))
                item.priority = min(item.priority, self._clock + item.value)

    def mark_used(self, saved: Saved) -> None:
        """Make a state the most recently used one."""
        self._states.pop(saved, None)
        self._states[saved] = None
        saved.priority = self._clock + saved.value

    def value(self, saved: Saved, n_bytes: int, source: Resident | Saved | None = None) -> float:
        """Prefilled tokens per byte that a state of ``n_bytes`` saves, beyond all items but ``source``.

        Truncatable states have no value: all save about one token per cell.
        """
        if self._kind.truncatable:
            return 0.0
        n_tokens, n_known = len(saved.tokens), 0
        for depth, item in self._trees.matches(saved.tokens, saved.adapter):
            if self._kind.divisible and not saved.is_partial:
                if item is not source:
                    n_known = max(n_known, min(depth, item.n_held))
            elif isinstance(item, Saved) and len(item.tokens) == depth < n_tokens:
                n_known = max(n_known, depth)
        return (n_tokens - n_known) / max(n_bytes, 1)

    def make_room(
        self, new: Saved, n_bytes: int, pinned: Tokens[State | None] = (), *, value: float = math.inf
    ) -> bool:
        """Evict states, except ``pinned``, until the ``n_bytes`` of a new one fit into the budget.

        False, without evictions, if they cannot fit, or if a state of higher priority would be evicted. Then
        all priorities decrease by ``value``, relative to those of later states.
        """

        def is_pinned(saved: Saved) -> bool:
            return saved.state is not None and any(saved.state is state for state in pinned)

        if n_bytes + sum(saved.n_bytes for saved in self._states if is_pinned(saved)) > self.budget:
            return False
        # A pinned state still occupies its bytes.
        replaced = [saved for saved in self._covered(new) if not is_pinned(saved)]
        n_free = self.budget - self.figures.n_bytes + sum(saved.n_bytes for saved in replaced)
        evicted: list[Saved] = []
        priorities: dict[Saved, float] = {}
        if n_free < n_bytes:
            priorities = {saved: self._priority(saved) for saved in self._states}
            for saved in sorted(self._states, key=lambda saved: (saved.is_context, priorities[saved])):
                if saved.state is None or saved in replaced or is_pinned(saved):
                    continue
                if priorities[saved] > self._clock + value:
                    self._clock += value
                    return False
                evicted.append(saved)
                n_free += saved.n_bytes
                if n_free >= n_bytes:
                    break
        for saved in replaced:
            self.discard(saved)
        for saved in evicted:
            # Partial states are small: a complete state that follows may free enough without them.
            if saved.is_partial and n_free - saved.n_bytes >= n_bytes:
                n_free -= saved.n_bytes
            else:
                self._clock = max(self._clock, priorities[saved])
                self._evict(saved)
        return True

    def _priority(self, saved: Saved) -> float:
        """Priority of a state. A partial one is useless if no item has its keys and values."""
        if not saved.is_partial:
            return saved.priority
        n_tokens = len(saved.tokens)
        for depth, item in self._trees.matches(saved.tokens, saved.adapter):
            if depth < n_tokens:
                break
            if item.n_held >= n_tokens:
                return saved.priority
        return -math.inf

    def _covered(self, new: Saved) -> list[Saved]:
        """States that a new one replaces: of the same tokens, and of prefixes that it can be truncated to."""
        return [
            item
            for depth, item in self._trees.matches(new.tokens, new.adapter)
            if isinstance(item, Saved)
            and not item.is_context
            and depth == len(item.tokens)
            and (self._kind.truncatable or depth == len(new.tokens))
            and (item.is_partial or not new.is_partial)
        ]

    def _evict(self, saved: Saved) -> None:
        self.figures.n_evicted += 1
        if saved.is_context and self._has_files:
            self.figures.n_bytes -= saved.n_bytes
            saved.state = None  # still on disk
        else:
            self.discard(saved)

    def discard(self, saved: Saved) -> None:
        """Remove a state."""
        self._trees.discard(saved)
        self.figures.n_bytes -= saved.n_bytes
        self._states.pop(saved, None)
        self.figures.n_states = len(self._states)
        self.n_changes += 1
