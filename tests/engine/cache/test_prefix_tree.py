"""The radix tree equals a plain list."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from app.engine.cache.prefix_tree import PrefixTree, _Node, n_shared_tokens

# Texts of three tokens share prefixes.
texts = st.lists(st.integers(0, 2), max_size=8)


def shared(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class TreeAgainstList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tree: PrefixTree[int] = PrefixTree()
        self.list: dict[int, list[int]] = {}

    @rule(text=texts, item=st.integers(0, 12))
    def insert(self, text: list[int], item: int) -> None:
        self.tree.insert(text, item)
        self.list[item] = text

    @rule(item=st.integers(0, 12))
    def discard(self, item: int) -> None:
        self.tree.discard(item)
        self.list.pop(item, None)

    @rule(text=texts)
    def matches(self, text: list[int]) -> None:
        found = list(self.tree.matches(text))
        assert sorted((item, depth) for depth, item in found) == sorted(
            (item, shared(text, other)) for item, other in self.list.items() if shared(text, other)
        )
        depths = [depth for depth, _ in found]
        assert depths == sorted(depths, reverse=True)

    @invariant()
    def items_are_those_inserted(self) -> None:
        assert set(self.tree) == set(self.list)

    @invariant()
    def nodes_are_necessary_and_linked(self) -> None:
        def check(node: _Node[int], text: list[int]) -> None:
            assert node.parent is None or node.items or len(node.children) > 1
            for item in node.items:
                assert self.list[item] == text
            for first, child in node.children.items():
                assert child.parent is node
                assert child.run[0] == first
                check(child, text + child.run.tolist())

        check(self.tree._root, [])


TreeAgainstList.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestTreeAgainstList = TreeAgainstList.TestCase


@given(texts, texts)
def test_the_number_of_shared_tokens_equals_a_plain_count(a: list[int], b: list[int]) -> None:
    assert n_shared_tokens(a, b) == shared(a, b)


def test_matches_among_many_long_texts_are_found() -> None:
    rng = random.Random(1)
    tree: PrefixTree[int] = PrefixTree()
    prefix = [rng.randrange(50_000) for _ in range(700)]
    for item in range(500):
        tree.insert([*prefix, item, *range(50)], item)
    depth, item = next(tree.matches([*prefix, 77, 0, 1, 99]))
    assert (depth, item) == (703, 77)
    assert [item for _, item in tree.matches([*prefix, 600])] != []
    assert list(tree.matches([50_001])) == []
