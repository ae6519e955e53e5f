"""The prefix cache is consistent after faults of KV memory, and copies are within the budget."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.engine.cache.kv_state import MemoryKind
from app.engine.cache.prefix_cache import PrefixCache
from app.engine.cache.prefix_tree import PrefixTree
from app.engine.sequence import Sequence
from tests.engine.cache.fake_memory import FakeMemory, sequence
from tests.engine.cache.prefix_cache_rig import PREFIX, Files, Rig


class Fault(Exception):
    pass


FAILING = ["save_sequence", "restore_sequence", "truncate_sequence", "clear_sequence"]


class FaultyMemory(FakeMemory):
    """Raises at a chosen call of a method, and leaves wrong tokens in the slot."""

    failing: str | None = None
    n_before = 0  # calls that succeed
    error: type[Exception] = Fault

    def _fail(self, method: str, slot: int | None) -> None:
        if method != self.failing:
            return
        self.n_before -= 1
        if self.n_before < 0:
            self.failing = None
            if slot is not None:
                self.slots[slot] = [-1, -2]
            raise self.error("forced")

    def save_sequence(self, sequence: int, *, partial: bool = False) -> NDArray[np.uint8]:
        self._fail("save_sequence", None)
        return super().save_sequence(sequence, partial=partial)

    def restore_sequence(self, sequence: int, state: NDArray[np.uint8], *, partial: bool = False) -> bool:
        self._fail("restore_sequence", sequence)
        return super().restore_sequence(sequence, state, partial=partial)

    def truncate_sequence(self, sequence: int, n_tokens: int) -> None:
        self._fail("truncate_sequence", sequence)
        super().truncate_sequence(sequence, n_tokens)

    def clear_sequence(self, sequence: int) -> None:
        self._fail("clear_sequence", sequence)
        super().clear_sequence(sequence)


class FaultyRig(Rig):
    """Two running sequences, two idle slots and a saved text before a fault."""

    def __init__(self, kind: MemoryKind, failing: str, n_before: int) -> None:
        super().__init__(budget=3000)
        self.memory = self.faulty = FaultyMemory(kind)
        self.cache = PrefixCache(self.memory, kind, 3000)
        self.run(3, list(range(300, 350)))
        self.run(3, [*PREFIX, *range(500, 550)])
        self.run(2, list(range(800, 860)))
        self.running = [self.start(slot, [*PREFIX, 200 + slot]) for slot in (0, 1)]
        self.faulty.failing, self.faulty.n_before = failing, n_before

    def check(self) -> None:
        """Fail unless all entries match KV memory, sequences and budget."""
        cache, memory = self.cache, self.memory
        for slot, resident in cache._residents.items():
            held = memory.slots[slot]
            assert held[: len(resident.tokens)] == resident.tokens
            assert resident.sequence is None or resident.sequence.slot == slot
        for item in self.running:
            assert item.slot is None or cache._residents[item.slot].sequence is item
        assert set(cache._trees) == {*cache._residents.values(), *cache._saved}
        assert cache.figures.n_bytes == sum(saved.n_bytes for saved in cache._saved) <= cache.budget
        assert cache.figures.n_states == len(cache._saved)


PROMPTS = {
    "continues the slot": [*PREFIX, *range(500, 550), 1],
    "diverges from the slot": [*PREFIX, *range(500, 520), 1],
    "has a prefix in another slot": [*range(300, 350), 1],
    "has a running prefix": [*PREFIX, 200, 1],
    "is new": list(range(5000, 5020)),
}
KINDS = {"truncatable": MemoryKind(), "recurrent": MemoryKind(truncatable=False)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("failing", FAILING)
@pytest.mark.parametrize("slot", [2, 3])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_fault_in_occupy_leaves_the_cache_consistent(
    kind: str, failing: str, slot: int, prompt: str
) -> None:
    for n_before, drops in itertools.product(range(3), (True, False)):
        rig = FaultyRig(KINDS[kind], failing, n_before)
        item = sequence(PROMPTS[prompt])
        try:
            rig.cache.occupy(slot, item)
        except Fault:
            assert item.slot is None
            rig.check()
            if drops:
                rig.cache.drop(slot)
                assert slot not in rig.memory.slots
            rig.check()
            rig.start(slot, PROMPTS[prompt])  # compares the tokens in the slot
        else:
            assert rig.memory.slots.get(slot, []) == item.tokens[: item.n_computed]
            rig.memory.slots[slot] = list(item.prompt)
        rig.check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("failing", FAILING)
def test_a_fault_in_a_move_keeps_the_sequence_in_its_slot(kind: str, failing: str) -> None:
    n_faults = 0
    for n_before in range(3):
        rig = FaultyRig(KINDS[kind], failing, n_before)
        moving = rig.running[1]
        try:
            rig.cache.move(moving, 2)
        except Fault:
            n_faults += 1
            assert moving.slot == 1
            for slot in (2, 1):
                rig.cache.drop(slot)
            assert moving.slot is None
            rig.check()
            rig.start(2, [*PREFIX, 201, 5])
        else:
            assert moving.slot == 2
        rig.check()
    assert bool(n_faults) == (failing != "truncate_sequence")


@pytest.mark.parametrize("method", ["insert", "discard"])
@pytest.mark.parametrize("fails_before", [True, False])
def test_after_a_fault_the_tree_has_only_current_sequences(
    method: str, fails_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(PrefixTree, method)
    n_left = 0

    def faulty(tree: PrefixTree[Any], *arguments: Any) -> None:
        nonlocal n_left
        n_left -= 1
        if not fails_before or n_left:
            original(tree, *arguments)
        if not n_left:
            raise Fault("forced")

    n_faults = 0
    for kind, n_before in itertools.product(KINDS.values(), range(1, 12)):
        rig = FaultyRig(kind, "nothing", 0)
        cache, [one, other] = rig.cache, rig.running
        acts: list[tuple[Callable[[], object], tuple[int, ...]]] = [
            (lambda c=cache, s=one: c.leave(s), (0,)),
            (lambda r=rig: r.start(3, [*range(300, 350), 1]), (3,)),
            (lambda c=cache, s=other: c.move(s, 2), (2, 1)),
            (lambda r=rig: r.start(0, list(range(5000, 5090))), (0,)),
        ]
        monkeypatch.setattr(PrefixTree, method, faulty)
        n_left = n_before
        for act, slots in acts:
            try:
                act()
            except Fault:
                n_faults += 1
                for slot in slots:
                    cache.drop(slot)
        monkeypatch.undo()
        assert set(cache._trees) <= {*cache._residents.values(), *cache._saved}
        assert cache.figures.n_bytes == sum(saved.n_bytes for saved in cache._saved) <= cache.budget
    assert n_faults > len(KINDS)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_a_failed_copy_costs_one_prefill(error: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    rig = FaultyRig(MemoryKind(), "save_sequence", 0)
    rig.faulty.error = error
    assert rig.start(2, list(range(5000, 5020))).n_cached == 0
    assert "cannot be copied: forced" in caplog.text
    rig.check()


# --- copies and the budget


class CountingMemory(FakeMemory):
    """Counts the bytes of states that exist at once."""

    def __init__(self, kind: MemoryKind) -> None:
        super().__init__(kind)
        self.alive = 0
        self.peak = 0

    def save_sequence(self, sequence: int, *, partial: bool = False) -> NDArray[np.uint8]:
        state = super().save_sequence(sequence, partial=partial).copy()
        self.count(state)
        return state

    def count(self, state: NDArray[np.uint8]) -> None:
        n_bytes = state.nbytes
        self.alive += n_bytes
        self.peak = max(self.peak, self.alive)
        weakref.finalize(state, self.free, n_bytes)

    def free(self, n_bytes: int) -> None:
        self.alive -= n_bytes


class CountedFiles(Files):
    def __init__(self, memory: CountingMemory) -> None:
        super().__init__()
        self.memory = memory

    def load(self, tokens: Tokens[int], adapter: str = "") -> NDArray[np.uint8] | None:
        state = super().load(tokens, adapter)
        if state is None:
            return None
        state = state.copy()
        self.memory.count(state)
        return state


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), budget=st.integers(0, 2000))
def test_copies_beyond_the_budget_are_at_most_one_sequence(data: st.DataObject, budget: int) -> None:
    """The bound is that of ``transient_bytes``. A slot has 100 tokens here."""
    memory = CountingMemory(MemoryKind())
    cache = PrefixCache(memory, memory.kind, budget, CountedFiles(memory))
    running: dict[int, Sequence] = {}
    prompts = st.builds(lambda n, part: [*range(n), 900 + part], st.integers(0, 99), st.integers(0, 3))
    for _ in range(25):
        slot = data.draw(st.integers(0, 3))
        if slot not in running:
            item = running[slot] = sequence(data.draw(prompts))
            if data.draw(st.integers(0, 4)) == 0 and cache.load_context(item.prompt):
                del running[slot]
                continue
            cache.occupy(slot, item)
            memory.slots[slot] = list(item.prompt)
            item.n_computed = len(item.prompt)
        elif (target := data.draw(st.integers(0, 3))) not in running:
            running[target] = running.pop(slot)
            cache.move(running[target], target)
        else:
            if data.draw(st.booleans()):
                cache.save_context(running[slot])
            cache.leave(running.pop(slot))
        assert memory.alive == cache.figures.n_bytes <= budget
    assert memory.peak <= budget + 4 * 100


def test_a_state_over_the_budget_is_measured_and_not_copied(caplog: pytest.LogCaptureFixture) -> None:
    files = Files()
    rig = Rig(budget=300, files=files)
    rig.run(0, PREFIX)
    rig.run(0, list(range(1000, 1010)))
    context = rig.start(1, PREFIX)
    rig.cache.save_prefix(context)
    rig.cache.save_context(context)
    assert rig.memory.n_saves == 0
    assert not files.kept
    assert "raise PREFIX_CACHE_MB" in caplog.text
    files.save(PREFIX, np.zeros(400, np.uint8))
    assert not rig.cache.load_context(PREFIX)
