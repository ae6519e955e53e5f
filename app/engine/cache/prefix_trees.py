"""The items of a prefix cache by their tokens, apart for each adapter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain

from app.engine.cache.kv_state import Resident, Saved
from app.engine.cache.prefix_tree import PrefixTree

Item = Resident | Saved


class PrefixTrees:
    """One tree per adapter. Keys and values depend on the adapter, so its items match no other prompts."""

    def __init__(self) -> None:
        self._trees: defaultdict[str, PrefixTree[Item]] = defaultdict(PrefixTree)

    def __iter__(self) -> Iterator[Item]:
        return chain.from_iterable(self._trees.values())

    def insert(self, item: Item) -> None:
        self._trees[item.adapter].insert(item.tokens, item)

    def discard(self, item: Item) -> None:
        """Remove ``item`` if it is present."""
        self._trees[item.adapter].discard(item)

    def matches(self, tokens: Sequence[int], adapter: str) -> Iterator[tuple[int, Item]]:
        """See ``PrefixTree.matches``."""
        return self._trees[adapter].matches(tokens)
