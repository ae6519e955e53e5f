"""Order of evictions among states that cannot be truncated."""

from __future__ import annotations

import numpy as np
import pytest

from app.engine.cache.kv_state import MemoryKind, Resident, Saved
from app.engine.cache.prefix_trees import PrefixTrees
from app.engine.cache.saved_states import SavedStates


class Store:
    """A store of 100 bytes, and a slot with 1,000 tokens."""

    def __init__(self) -> None:
        self.trees = PrefixTrees()
        self.states = SavedStates(self.trees, MemoryKind(False, True), 100, has_files=False)
        self.slot = Resident(0, list(range(1000)), None)
        self.trees.insert(self.slot)

    def save(self, n_tokens: int, n_bytes: int = 25, *, is_partial: bool = True) -> Saved:
        saved = Saved(self.slot.tokens[:n_tokens], np.zeros(n_bytes, np.uint8), is_partial=is_partial)
        saved.value = self.states.value(saved, n_bytes, self.slot)
        if self.states.make_room(saved, n_bytes, value=saved.value):
            self.states.keep(saved)
        return saved

    @property
    def lengths(self) -> set[int]:
        return {len(saved.tokens) for saved in self.states}


@pytest.fixture
def store() -> Store:
    return Store()


def test_a_state_that_saves_more_prefill_stays_longer(store: Store) -> None:
    for n_tokens in range(100, 300, 10):
        store.save(n_tokens)
    assert store.lengths == {100, 270, 280, 290}
    for n_tokens in range(300, 900, 10):
        store.save(n_tokens)
    assert store.lengths == {860, 870, 880, 890}, "an unused state never leaves"


def test_a_state_of_little_value_evicts_no_other(store: Store) -> None:
    for n_tokens in (200, 400, 600, 800):
        store.save(n_tokens)
    store.save(810)
    assert store.lengths == {200, 400, 600, 800}


def test_partial_states_whose_keys_are_lost_are_evicted_first(store: Store) -> None:
    store.save(500)
    store.trees.discard(store.slot)
    store.slot = Resident(0, list(range(2000, 3000)), None)
    store.trees.insert(store.slot)
    for n_tokens in (100, 110, 120, 130):
        store.save(n_tokens)
    assert store.lengths == {100, 110, 120, 130}


def test_small_states_stay_if_their_bytes_are_not_needed(store: Store) -> None:
    store.save(500, 60, is_partial=False)
    store.save(510, 1)
    store.slot = Resident(0, list(range(2000, 3000)), None)
    store.save(900, 60, is_partial=False)
    assert store.lengths == {510, 900}
