"""The prefix cache over a memory that only remembers tokens."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from app.engine.cache.kv_state import MemoryKind
from app.engine.cache.prefix_cache import PrefixCache
from app.engine.sequence import Sequence
from tests.engine.cache.fake_memory import FakeMemory, sequence

PREFIX = list(range(100))
MB = 1 << 20


class Rig:
    """A cache, its memory, and how a sequence is run through it."""

    def __init__(
        self, *, budget: int = MB, kind: MemoryKind | None = None, files: Files | None = None
    ) -> None:
        self.memory = FakeMemory(kind or MemoryKind())
        self.cache = PrefixCache(self.memory, self.memory.kind, budget, files)

    def start(self, slot: int, prompt: list[int]) -> Sequence:
        """Give a slot to a sequence and prefill what is missing of its prompt."""
        one = sequence(prompt)
        self.cache.occupy(slot, one)
        assert self.memory.slots.get(slot, []) == prompt[: one.n_computed]
        self.memory.slots[slot] = list(prompt)
        one.n_computed = len(prompt)
        return one

    def run(self, slot: int, prompt: list[int]) -> Sequence:
        """The same, and end it."""
        one = self.start(slot, prompt)
        self.cache.leave(one)
        return one


class Files:
    """Files that are there as long as the object."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, ...], NDArray[np.uint8]] = {}

    def n_bytes(self, tokens: object) -> int:
        state = self.kept.get(tuple(tokens))  # type: ignore[arg-type]
        return 0 if state is None else state.nbytes

    def load(self, tokens: object) -> NDArray[np.uint8] | None:
        return self.kept.get(tuple(tokens))  # type: ignore[arg-type]

    def save(self, tokens: object, state: NDArray[np.uint8]) -> None:
        self.kept[tuple(tokens)] = state.copy()  # type: ignore[arg-type]


def test_what_a_finished_sequence_left_is_used_where_it_lies() -> None:
    rig = Rig()
    rig.run(0, [*PREFIX, 200, 201])
    assert rig.run(0, [*PREFIX, 300]).n_cached == 100
    assert (rig.memory.n_saves, rig.memory.n_restores) == (0, 0)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    rig = Rig()
    rig.run(0, PREFIX)
    assert rig.run(0, PREFIX).n_cached == 99


def test_a_running_sequence_gives_its_prefix_and_the_copy_serves_the_next() -> None:
    rig = Rig()
    running = rig.start(0, [*PREFIX, 200])
    assert rig.start(1, [*PREFIX, 300]).n_cached == 100
    assert rig.start(2, [*PREFIX, 400]).n_cached == 100
    assert (rig.memory.n_saves, rig.memory.n_restores) == (1, 2)
    assert rig.memory.slots[0] == running.prompt


def test_cells_are_shared_where_they_can_be() -> None:
    rig = Rig(kind=MemoryKind(shares_cells=True))
    rig.start(0, [*PREFIX, 200])
    assert rig.start(1, [*PREFIX, 300]).n_cached == 100
    assert (rig.memory.n_shares, rig.memory.n_saves) == (1, 0)


def test_what_a_slot_loses_is_saved_and_found_again() -> None:
    rig = Rig()
    first = [*PREFIX, *range(500, 550)]
    rig.run(0, first)
    rig.run(0, list(range(1000, 1050)))
    assert rig.memory.n_saves == 1
    assert rig.run(0, [*first, 600]).n_cached == 150


def test_the_tail_that_a_cut_would_lose_is_saved_too() -> None:
    rig = Rig()
    conversation = [*PREFIX, *range(500, 550)]
    rig.run(0, conversation)
    assert rig.run(0, [*PREFIX, 300]).n_cached == 100
    assert rig.run(0, [*conversation, 600]).n_cached == 150


def test_little_texts_are_not_worth_a_copy() -> None:
    rig = Rig()
    rig.run(0, [*PREFIX, 200])
    rig.run(0, [*PREFIX, 300])
    rig.run(0, [*PREFIX, 400])
    assert rig.memory.n_saves == 0


def test_a_longer_text_takes_the_place_of_its_beginning() -> None:
    rig = Rig()
    for length in (40, 80, 120):
        rig.run(0, list(range(length)))
        rig.run(0, list(range(1000, 1010)))  # another text pushes it out
    assert rig.cache.figures.n_states == 1


def test_the_budget_holds_and_the_least_recently_used_goes_first() -> None:
    text_bytes = 50 * 4
    rig = Rig(budget=3 * text_bytes)
    texts = [list(range(n * 1000, n * 1000 + 50)) for n in range(5)]
    for text in texts[:4]:
        rig.run(0, text)  # each pushes out, and so saves, the one before
    assert rig.cache.figures.n_bytes == 3 * text_bytes
    assert rig.run(1, [*texts[0], 1]).n_cached == 50, "used once more"
    rig.run(0, texts[4])  # saves the fourth: one of three must go
    assert rig.cache.figures.n_bytes <= 3 * text_bytes
    assert rig.cache.lookup([*texts[1], 1]).n_tokens == 0, "the second was used longest ago"
    assert rig.cache.lookup([*texts[0], 1]).n_tokens == 50
    assert rig.cache.figures.n_evicted == 1


def test_without_a_budget_only_live_sequences_are_found() -> None:
    rig = Rig(budget=0)
    rig.start(0, [*PREFIX, 200])
    assert rig.start(1, [*PREFIX, 300]).n_cached == 100
    assert rig.cache.figures.n_bytes == 0
    rig.run(2, list(range(5000, 5050)))
    rig.run(2, list(range(6000, 6050)))
    assert rig.cache.lookup(list(range(5000, 5050))).n_tokens == 0


def test_a_move_takes_the_sequence_along_and_saves_what_was_there() -> None:
    rig = Rig()
    rig.run(0, PREFIX)
    moving = rig.start(1, list(range(700, 760)))
    rig.cache.move(moving, 0)
    assert moving.slot == 0
    assert rig.memory.slots == {0: moving.prompt}
    assert rig.cache.lookup([*PREFIX, 1]).n_tokens == 100


def test_one_that_is_being_prefilled_is_expected() -> None:
    rig = Rig()
    first = sequence([*PREFIX, 200])
    rig.cache.occupy(0, first)
    prefix = rig.cache.lookup([*PREFIX, 300])
    assert (prefix.n_tokens, prefix.n_expected, prefix.expected_from) == (0, 100, first)
    first.n_computed = 100
    assert rig.cache.lookup([*PREFIX, 300]).n_tokens == 100


def test_a_dropped_slot_is_not_found() -> None:
    rig = Rig()
    rig.start(0, PREFIX)
    rig.cache.drop(0)
    assert rig.cache.lookup(PREFIX).source is None
    assert rig.memory.slots == {}


class TestWhatCannotBeCut:
    """A recurrent state stands for exactly the tokens that made it."""

    def rig(self) -> Rig:
        return Rig(kind=MemoryKind(truncatable=False))

    def test_a_text_that_goes_on_is_continued(self) -> None:
        rig = self.rig()
        rig.run(0, PREFIX)
        assert rig.run(0, [*PREFIX, 1, 2]).n_cached == 100

    def test_a_text_that_parts_from_it_is_not(self) -> None:
        rig = self.rig()
        rig.run(0, [*PREFIX, 1])
        assert rig.run(0, [*PREFIX, 2]).n_cached == 0
        assert rig.run(0, [*PREFIX, 1]).n_cached == 0, "the last token has to be computed"
        assert rig.run(0, [*PREFIX, 1, 5]).n_cached == 101

    def test_a_running_one_gives_what_it_has_where_that_is_a_prefix(self) -> None:
        rig = self.rig()
        first = sequence([*PREFIX, 200, 201])
        rig.cache.occupy(0, first)
        rig.memory.slots[0] = list(PREFIX)
        first.n_computed = 100
        assert rig.start(1, [*PREFIX, 300]).n_cached == 100
        first.n_computed = 101
        assert rig.cache.lookup([*PREFIX, 400]).n_tokens == 100, "from the copy"

    def test_the_beginning_of_a_saved_text_stays(self) -> None:
        rig = self.rig()
        for length in (40, 80):
            rig.run(0, list(range(length)))
            rig.run(0, list(range(1000, 1010)))
        assert rig.cache.figures.n_states == 2


class TestContexts:
    def test_a_context_is_computed_once_and_found_after_a_restart(self) -> None:
        files = Files()
        rig = Rig(files=files)
        assert not rig.cache.load_context(PREFIX)
        context = rig.start(0, PREFIX)
        rig.cache.save_context(context)
        rig.cache.leave(context)

        again = Rig(files=files)
        assert again.cache.load_context(PREFIX)
        assert again.run(3, [*PREFIX, 9]).n_cached == 100

    def test_contexts_go_last_and_come_back_from_disk(self) -> None:
        context_bytes, files = 100 * 4, Files()
        rig = Rig(budget=context_bytes + 300, files=files)
        context = rig.start(0, PREFIX)
        rig.cache.save_context(context)
        rig.cache.leave(context)
        rig.cache.drop(0)
        for n in range(1, 6):
            rig.run(0, list(range(n * 1000, n * 1000 + 50)))
        assert rig.cache.lookup([*PREFIX, 9]).n_tokens == 100, "others went before it"
        rig.run(0, list(range(9000, 9150)))
        rig.run(0, [1])  # saves a text that leaves no room for the context
        assert rig.cache.figures.n_bytes == 600
        assert rig.run(1, [*PREFIX, 9]).n_cached == 100
        assert rig.cache.figures.n_bytes == 400, "it came back in place of the other"

    def test_a_file_that_went_away_is_a_prefix_less(self) -> None:
        files = Files()
        rig = Rig(budget=700, files=files)
        context = rig.start(0, PREFIX)
        rig.cache.save_context(context)
        rig.cache.leave(context)
        rig.cache.drop(0)
        rig.run(0, list(range(9000, 9150)))
        rig.run(0, [1])
        files.kept.clear()
        assert rig.run(1, [*PREFIX, 9]).n_cached == 0
        assert rig.run(1, [*PREFIX, 8]).n_cached == 100


def test_memory_that_refuses_a_state_costs_a_prefill_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig()
    rig.start(0, [*PREFIX, 200])
    monkeypatch.setattr(rig.memory, "restore_sequence", lambda *_: False)
    assert rig.start(1, [*PREFIX, 300]).n_cached == 0
    assert "does not fit" in caplog.text
