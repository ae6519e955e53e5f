"""A radix tree over token ids: which of the stored texts share the longest prefix with a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

Tokens = NDArray[np.int32]


class _Node(Generic[T]):
    """A stretch of tokens behind the parent's, the items whose text ends with it, and the texts that go on.

    Children differ in their first token, by which they are found.
    """

    __slots__ = ("children", "items", "parent", "stretch")

    def __init__(self, stretch: Tokens, parent: _Node[T] | None) -> None:
        self.stretch = stretch
        self.parent = parent
        self.children: dict[int, _Node[T]] = {}
        self.items: dict[T, None] = {}  # a set that remembers the order


class PrefixTree(Generic[T]):
    """Items, each filed under a text (its token ids); many may have the same text, each has one.

    Every node but the root has items or at least two children, so that all below a node share exactly the
    tokens that lead to it, and a tree of n items has at most 2 n nodes (Morrison 1968, "PATRICIA").
    """

    def __init__(self) -> None:
        self._root: _Node[T] = _Node(np.empty(0, np.int32), None)
        self._nodes: dict[T, _Node[T]] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, item: T) -> bool:
        return item in self._nodes

    def __iter__(self) -> Iterator[T]:
        return iter(self._nodes)

    def insert(self, tokens: Sequence[int], item: T) -> None:
        """File ``item`` under ``tokens``; one that is filed already moves there."""
        self.discard(item)
        rest = np.asarray(tokens, np.int32)
        node = self._root
        while len(rest):
            child = node.children.get(int(rest[0]))
            if child is None:
                child = _Node(rest, node)
                node.children[int(rest[0])] = child
            n_shared = _n_shared(child.stretch, rest)
            if n_shared < len(child.stretch):
                child = self._split(child, n_shared)
            node, rest = child, rest[n_shared:]
        node.items[item] = None
        self._nodes[item] = node

    def discard(self, item: T) -> None:
        """Take ``item`` out, if it is there."""
        node = self._nodes.pop(item, None)
        if node is None:
            return
        del node.items[item]
        parent = node.parent
        if parent is None or node.items:
            return
        if not node.children:
            del parent.children[int(node.stretch[0])]
            node = parent
        self._merge(node)

    def matches(self, tokens: Sequence[int]) -> Iterator[tuple[int, T]]:
        """All items that share a prefix with ``tokens``, those that share most first, with its length."""
        rest = np.asarray(tokens, np.int32)
        path: list[tuple[int, _Node[T]]] = []  # how many tokens are shared with all below each node
        node, depth = self._root, 0
        while len(rest):
            child = node.children.get(int(rest[0]))
            if child is None:
                break
            n_shared = _n_shared(child.stretch, rest)
            depth += n_shared
            path.append((depth, child))
            if n_shared < len(child.stretch):
                break
            node, rest = child, rest[n_shared:]
        deeper: _Node[T] | None = None
        for depth, node in reversed(path):
            for item in self._below(node, deeper):
                yield depth, item
            deeper = node

    def _below(self, node: _Node[T], apart_from: _Node[T] | None) -> Iterator[T]:
        pending = [node]
        while pending:
            node = pending.pop()
            yield from node.items
            pending += [child for child in node.children.values() if child is not apart_from]

    def _split(self, node: _Node[T], at: int) -> _Node[T]:
        """Put a node for the first ``at`` tokens of a node's stretch above it."""
        assert node.parent is not None
        upper: _Node[T] = _Node(node.stretch[:at], node.parent)
        node.parent.children[int(upper.stretch[0])] = upper
        node.stretch, node.parent = node.stretch[at:], upper
        upper.children[int(node.stretch[0])] = node
        return upper

    def _merge(self, node: _Node[T]) -> None:
        """Join a node without items with its only child."""
        if node.parent is None or node.items or len(node.children) != 1:
            return
        [child] = node.children.values()
        child.stretch = np.concatenate((node.stretch, child.stretch))
        child.parent = node.parent
        node.parent.children[int(child.stretch[0])] = child


def n_shared_tokens(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    return _n_shared(np.asarray(a, np.int32), np.asarray(b, np.int32))


def _n_shared(a: Tokens, b: Tokens) -> int:
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    first = int(differ.argmax()) if n else 0
    return first if n and differ[first] else n
