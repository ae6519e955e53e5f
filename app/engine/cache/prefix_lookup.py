"""Finds the longest known prefix of a prompt among live sequences and saved states."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, replace

from app.engine.cache.kv_state import KVMemory, MemoryKind, Prefix, Resident, Saved
from app.engine.cache.prefix_trees import PrefixTrees

# Cost of bringing a prefix into a slot, in units of prefilled tokens. A copy takes about 5 µs per token each
# way, prefill 500 to 10,000 µs (docs/engine.md). So costs only decide between similar prefixes.
_COST_OF_RESTORING = 4
_COST_OF_COPYING = 8
_COST_OF_READING = 24


@dataclass(frozen=True, slots=True)
class PrefixLookup:
    """Searches the trees of a cache. It changes nothing.

    Attributes:
        trees: All items of the cache.
        memory: KV memory of the live sequences.
        kind: Its abilities.
    """

    trees: PrefixTrees
    memory: KVMemory
    kind: MemoryKind

    def longest(self, tokens: Tokens[int], adapter: str, slot: int | None = None) -> Prefix:
        """Find the longest known prefix of a prompt. The last token is excluded: its logits are needed.

        Args:
            tokens: The prompt.
            adapter: Its adapter.
            slot: The target slot; its contents need no copy. None: any slot.
        """
        best, best_score = Prefix(), 0
        n_expected, expected_from = 0, None
        for depth, item in self.trees.matches(tokens, adapter):
            n_shared = min(depth, len(tokens) - 1)
            if n_shared <= best_score:
                break  # matches come in descending order
            n_usable = self.usable(item, n_shared, slot)
            score = n_usable - self._cost(item, slot)
            if score > best_score:
                holder = None
                if isinstance(item, Saved) and item.is_partial:
                    holder = self._holder(tokens[:n_usable], adapter, slot)
                    if holder is None:
                        continue
                    score -= self._cost(holder, slot)
                if score > best_score:
                    best, best_score = Prefix(n_usable, item, holder), score
            if isinstance(item, Resident) and item.sequence and item.n_computed < n_shared > n_expected:
                n_expected, expected_from = n_shared, item.sequence
        return replace(best, n_expected=n_expected, expected_from=expected_from)

    def _holder(self, tokens: Tokens[int], adapter: str, slot: int | None) -> Resident | Saved | None:
        """The item that can most cheaply bring keys and values of these tokens into a slot."""
        holders: list[Resident | Saved] = []
        for depth, item in self.trees.matches(tokens, adapter):
            if depth < len(tokens):
                break
            if item.n_held >= depth:
                holders.append(item)
        return min(holders, key=lambda item: self._cost(item, slot), default=None)

    def usable(self, item: Resident | Saved, n_shared: int, slot: int | None) -> int:
        """Number of the first ``n_shared`` tokens that an item can bring into a slot."""
        n_tokens = item.n_computed if isinstance(item, Resident) else len(item.tokens)
        if self.kind.truncatable:
            return min(n_tokens, n_shared)
        if n_tokens <= n_shared:
            return n_tokens
        if isinstance(item, Resident) and item.sequence is None and slot in (None, item.slot):
            return n_shared if self.memory.can_truncate(item.slot, n_shared) else 0
        return 0

    def _cost(self, item: Resident | Saved, slot: int | None) -> int:
        if isinstance(item, Saved):
            return _COST_OF_RESTORING if item.state is not None else _COST_OF_READING
        if item.sequence is None and slot in (None, item.slot):
            return 0
        return _COST_OF_COPYING
