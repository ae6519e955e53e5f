"""Radix tree over token ids. Finds the stored items that share the longest prefix with a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

Tokens = NDArray[np.int32]


class _Node(Generic[T]):
    """A run of tokens after those of the parent, and the items that end with it.

    Children are keyed by their first token.
    """

    __slots__ = ("children", "items", "parent", "run")

    def __init__(self, run: Tokens, parent: _Node[T] | None) -> None:
        self.run = run
        self.parent = parent
        self.children: dict[int, _Node[T]] = {}
        self.items: dict[T, None] = {}  # an ordered set


class PrefixTree(Generic[T]):
    """Maps token sequences to items. Several items can have the same tokens.

    Every node except the root has items or at least two children. So n items need at most 2 n nodes
    (Morrison 1968, "PATRICIA").
    """

    def __init__(self) -> None:
        self._root: _Node[T] = _Node(np.empty(0, np.int32), None)
        self._nodes: dict[T, _Node[T]] = {}

    def __iter__(self) -> Iterator[T]:
        return iter(self._nodes)

    def insert(self, tokens: Sequence[int], item: T) -> None:
        """Add ``item``, or change its tokens."""
        self.discard(item)
        rest = np.asarray(tokens, np.int32)
        node = self._root
        while len(rest):
            child = node.children.get(int(rest[0]))
            if child is None:
                child = _Node(rest, node)
                node.children[int(rest[0])] = child
            n_shared = _n_shared(child.run, rest)
            if n_shared < len(child.run):
                child = self._split(child, n_shared)
            node, rest = child, rest[n_shared:]
        node.items[item] = None
        self._nodes[item] = node

    def discard(self, item: T) -> None:
        """Remove ``item`` if it is present."""
        node = self._nodes.pop(item, None)
        if node is None:
            return
        del node.items[item]
        parent = node.parent
        if parent is None or node.items:
            return
        if not node.children:
            del parent.children[int(node.run[0])]
            node = parent
        self._merge(node)

    def matches(self, tokens: Sequence[int]) -> Iterator[tuple[int, T]]:
        """Items that share a prefix with ``tokens``, with its length, the longest first."""
        rest = np.asarray(tokens, np.int32)
        path: list[tuple[int, _Node[T]]] = []  # number of tokens shared with all items below each node
        node, depth = self._root, 0
        while len(rest):
            child = node.children.get(int(rest[0]))
            if child is None:
                break
            n_shared = _n_shared(child.run, rest)
            depth += n_shared
            path.append((depth, child))
            if n_shared < len(child.run):
                break
            node, rest = child, rest[n_shared:]
        deeper: _Node[T] | None = None
        for depth, node in reversed(path):
            for item in self._below(node, deeper):
                yield depth, item
            deeper = node

    def _below(self, node: _Node[T], excluded: _Node[T] | None) -> Iterator[T]:
        pending = [node]
        while pending:
            node = pending.pop()
            yield from node.items
            pending += [child for child in node.children.values() if child is not excluded]

    def _split(self, node: _Node[T], at: int) -> _Node[T]:
        """Split a node after ``at`` tokens. Returns the upper part."""
        assert node.parent is not None
        upper: _Node[T] = _Node(node.run[:at], node.parent)
        node.parent.children[int(upper.run[0])] = upper
        node.run, node.parent = node.run[at:], upper
        upper.children[int(node.run[0])] = node
        return upper

    def _merge(self, node: _Node[T]) -> None:
        """Join a node with its only child, unless it has items."""
        if node.parent is None or node.items or len(node.children) != 1:
            return
        [child] = node.children.values()
        child.run = np.concatenate((node.run, child.run))
        child.parent = node.parent
        node.parent.children[int(child.run[0])] = child


def n_shared_tokens(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    return _n_shared(np.asarray(a, np.int32), np.asarray(b, np.int32))


def _n_shared(a: Tokens, b: Tokens) -> int:
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    first = int(differ.argmax()) if n else 0
    return first if n and differ[first] else n
