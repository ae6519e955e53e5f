"""The prefix cache over a fake KV memory of tokens."""

from __future__ import annotations

import pytest

from app.engine.cache.kv_state import MemoryKind
from tests.engine.cache.fake_memory import sequence
from tests.engine.cache.prefix_cache_rig import PREFIX, Files, Rig


def test_the_state_of_a_finished_sequence_is_used_in_its_slot() -> None:
    rig = Rig()
    rig.run(0, [*PREFIX, 200, 201])
    assert rig.run(0, [*PREFIX, 300]).n_cached == 100
    assert (rig.memory.n_saves, rig.memory.n_restores) == (0, 0)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    rig = Rig()
    rig.run(0, PREFIX)
    assert rig.run(0, PREFIX).n_cached == 99


def test_the_prefix_of_a_running_sequence_is_copied_once() -> None:
    rig = Rig()
    running = rig.start(0, [*PREFIX, 200])
    assert rig.start(1, [*PREFIX, 300]).n_cached == 100
    assert rig.start(2, [*PREFIX, 400]).n_cached == 100
    assert (rig.memory.n_saves, rig.memory.n_restores) == (1, 2)
    assert rig.memory.slots[0] == running.prompt


def test_a_state_evicted_from_a_slot_is_saved_and_found() -> None:
    rig = Rig()
    first = [*PREFIX, *range(500, 550)]
    rig.run(0, first)
    rig.run(0, list(range(1000, 1050)))
    assert rig.memory.n_saves == 1
    assert rig.run(0, [*first, 600]).n_cached == 150


def test_a_state_is_saved_before_it_is_truncated() -> None:
    rig = Rig()
    conversation = [*PREFIX, *range(500, 550)]
    rig.run(0, conversation)
    assert rig.run(0, [*PREFIX, 300]).n_cached == 100
    assert rig.run(0, [*conversation, 600]).n_cached == 150


def test_short_texts_are_not_saved() -> None:
    rig = Rig()
    rig.run(0, [*PREFIX, 200])
    rig.run(0, [*PREFIX, 300])
    rig.run(0, [*PREFIX, 400])
    assert rig.memory.n_saves == 0


def test_a_longer_text_replaces_its_beginning() -> None:
    rig = Rig()
    for length in (40, 80, 120):
        rig.run(0, list(range(length)))
        rig.run(0, list(range(1000, 1010)))  # another text evicts it
    assert rig.cache.figures.n_states == 1


def test_the_least_recently_used_state_is_evicted_within_the_budget() -> None:
    text_bytes = 50 * 4
    rig = Rig(budget=3 * text_bytes)
    texts = [list(range(n * 1000, n * 1000 + 50)) for n in range(5)]
    for text in texts[:4]:
        rig.run(0, text)  # each evicts and thus saves the previous text
    assert rig.cache.figures.n_bytes == 3 * text_bytes
    assert rig.run(1, [*texts[0], 1]).n_cached == 50, "the first text is used again"
    rig.run(0, texts[4])  # saves the fourth text, so another is evicted
    assert rig.cache.figures.n_bytes <= 3 * text_bytes
    assert rig.cache.lookup([*texts[1], 1]).n_tokens == 0, "the second text is the least recently used"
    assert rig.cache.lookup([*texts[0], 1]).n_tokens == 50
    assert rig.cache.figures.n_evicted == 1


def test_without_a_budget_only_states_in_slots_are_found() -> None:
    rig = Rig(budget=0)
    rig.start(0, [*PREFIX, 200])
    assert rig.start(1, [*PREFIX, 300]).n_cached == 100
    assert rig.cache.figures.n_bytes == 0
    rig.run(2, list(range(5000, 5050)))
    rig.run(2, list(range(6000, 6050)))
    assert rig.cache.lookup(list(range(5000, 5050))).n_tokens == 0


def test_a_move_saves_the_state_in_the_target_slot() -> None:
    rig = Rig()
    rig.run(0, PREFIX)
    moving = rig.start(1, list(range(700, 760)))
    rig.cache.move(moving, 0)
    assert moving.slot == 0
    assert rig.memory.slots == {0: moving.prompt}
    assert rig.cache.lookup([*PREFIX, 1]).n_tokens == 100


def test_a_prefix_in_prefill_is_expected() -> None:
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


class TestStatesThatCannotBeTruncated:
    """A recurrent state is valid for exactly the tokens that computed it."""

    def rig(self) -> Rig:
        return Rig(kind=MemoryKind(truncatable=False))

    def test_a_state_is_used_for_a_continued_text(self) -> None:
        rig = self.rig()
        rig.run(0, PREFIX)
        assert rig.run(0, [*PREFIX, 1, 2]).n_cached == 100

    def test_a_state_is_not_used_for_another_text(self) -> None:
        rig = self.rig()
        rig.run(0, [*PREFIX, 1])
        assert rig.run(0, [*PREFIX, 2]).n_cached == 0
        assert rig.run(0, [*PREFIX, 1]).n_cached == 0, "the last token is always computed"
        assert rig.run(0, [*PREFIX, 1, 5]).n_cached == 101

    def test_the_state_of_a_running_sequence_is_copied_if_it_is_a_prefix(self) -> None:
        rig = self.rig()
        first = sequence([*PREFIX, 200, 201])
        rig.cache.occupy(0, first)
        rig.memory.slots[0] = list(PREFIX)
        first.n_computed = 100
        assert rig.start(1, [*PREFIX, 300]).n_cached == 100
        first.n_computed = 101
        assert rig.cache.lookup([*PREFIX, 400]).n_tokens == 100, "the copy is used"

    def test_the_beginning_of_a_saved_text_is_kept(self) -> None:
        rig = self.rig()
        for length in (40, 80):
            rig.run(0, list(range(length)))
            rig.run(0, list(range(1000, 1010)))
        assert rig.cache.figures.n_states == 2


class TestContexts:
    def test_a_context_is_loaded_after_a_restart(self) -> None:
        files = Files()
        rig = Rig(files=files)
        assert not rig.cache.load_context(PREFIX)
        context = rig.start(0, PREFIX)
        rig.cache.save_context(context)
        rig.cache.leave(context)

        restarted = Rig(files=files)
        assert restarted.cache.load_context(PREFIX)
        assert restarted.run(3, [*PREFIX, 9]).n_cached == 100

    def test_contexts_are_evicted_last_and_loaded_from_disk(self) -> None:
        context_bytes, files = 100 * 4, Files()
        rig = Rig(budget=context_bytes + 300, files=files)
        context = rig.start(0, PREFIX)
        rig.cache.save_context(context)
        rig.cache.leave(context)
        rig.cache.drop(0)
        for n in range(1, 6):
            rig.run(0, list(range(n * 1000, n * 1000 + 50)))
        assert rig.cache.lookup([*PREFIX, 9]).n_tokens == 100, "others are evicted before the context"
        rig.run(0, list(range(9000, 9150)))
        rig.run(0, [1])  # saves a text, so the context is evicted
        assert rig.cache.figures.n_bytes == 600
        assert rig.run(1, [*PREFIX, 9]).n_cached == 100
        assert rig.cache.figures.n_bytes == 400, "the context replaces the other text"

    def test_a_missing_file_of_a_context_costs_one_prefill(self) -> None:
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


def test_a_state_that_cannot_be_restored_costs_one_prefill(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig()
    rig.start(0, [*PREFIX, 200])
    monkeypatch.setattr(rig.memory, "restore_sequence", lambda *_: False)
    assert rig.start(1, [*PREFIX, 300]).n_cached == 0
    assert "does not fit" in caplog.text
