"""Saved states on disk: loaded only for equal tokens and key, and within the limit."""

from __future__ import annotations

import os
import stat
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from app.engine.cache.state_files import StateFiles
from tests.engine.cache.state_files_rig import (
    KEY,
    LARGE,
    OTHER_KEY,
    STATE,
    TOKENS,
    is_same,
    only_file,
    random_state,
    warnings,
)


def test_a_saved_state_is_loaded_by_another_object(
    folder: Path, states: StateFiles, caplog: pytest.LogCaptureFixture
) -> None:
    states.save(TOKENS, STATE)
    assert is_same(StateFiles(folder, KEY, max_bytes=LARGE).load(TOKENS), STATE)
    assert not caplog.records


def test_a_state_of_equal_tokens_replaces_the_first(folder: Path, states: StateFiles) -> None:
    states.save(TOKENS, STATE)
    states.save(TOKENS, STATE[:500])
    assert is_same(states.load(TOKENS), STATE[:500])
    assert len(list(folder.iterdir())) == 1


def test_a_loaded_state_is_a_copy(states: StateFiles) -> None:
    states.save(TOKENS, STATE)
    loaded = states.load(TOKENS)
    assert loaded is not None
    loaded[:] = 0
    assert is_same(states.load(TOKENS), STATE)


def test_a_strided_array_is_saved(states: StateFiles) -> None:
    states.save(TOKENS, STATE[::2])
    assert is_same(states.load(TOKENS), STATE[::2])


@pytest.mark.parametrize("tokens", [[], TOKENS[:-1], [*TOKENS, 1], TOKENS[::-1], [2**31 - 1]])
def test_other_tokens_have_no_state(
    states: StateFiles, tokens: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    states.save(TOKENS, STATE)
    assert states.load(tokens) is None
    assert not caplog.records


def test_another_key_has_its_own_states(folder: Path, states: StateFiles) -> None:
    states.save(TOKENS, STATE)
    other = StateFiles(folder, OTHER_KEY, max_bytes=LARGE)
    assert other.load(TOKENS) is None
    other.save(TOKENS, STATE[:10])
    assert is_same(states.load(TOKENS), STATE)
    assert is_same(other.load(TOKENS), STATE[:10])


def test_the_order_of_entries_in_the_key_has_no_effect(folder: Path, states: StateFiles) -> None:
    states.save(TOKENS, STATE)
    reversed_key = dict(reversed(KEY.items()))
    assert is_same(StateFiles(folder, reversed_key, max_bytes=LARGE).load(TOKENS), STATE)


def test_only_the_owner_can_read_states(folder: Path, states: StateFiles) -> None:
    before = os.umask(0)
    try:
        states.save(TOKENS, STATE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(only_file(folder).stat().st_mode) == 0o600


def test_the_size_of_a_state_is_that_of_its_file(folder: Path, states: StateFiles) -> None:
    assert states.n_bytes(TOKENS) == 0
    states.save(TOKENS, STATE)
    assert states.n_bytes(TOKENS) == only_file(folder).stat().st_size
    assert states.n_bytes(TOKENS[1:]) == 0


# --- the limit


def save_at(folder: Path, states: StateFiles, tokens: list[int], at: float) -> Path:
    """Save a state, and set the time of its file to ``at`` (seconds)."""
    before = set(folder.glob("*")) if folder.exists() else set()
    states.save(tokens, STATE)
    (path,) = set(folder.glob("*.kv")) - before
    os.utime(path, (at, at))
    return path


def test_the_least_recently_used_files_are_removed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    states = StateFiles(folder, KEY, max_bytes=310_000)
    other = StateFiles(folder, OTHER_KEY, max_bytes=310_000)
    now = time.time()
    save_at(folder, states, [1], now - 50)
    other_file = save_at(folder, other, [2], now - 40)
    save_at(folder, states, [3], now - 30)
    assert is_same(states.load([1]), STATE)  # used now

    states.save([4], STATE)
    assert not other_file.exists()
    assert [n for n in (1, 3, 4) if states.load([n]) is not None] == [1, 3, 4]
    states.save([5], STATE)
    assert len(list(folder.iterdir())) == 3
    assert not caplog.records


def test_files_that_another_process_removes_are_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    states = StateFiles(folder, KEY, max_bytes=110_000)
    removed = save_at(folder, states, [1], 0)
    scan = os.scandir

    def scan_and_remove(path: Path) -> AbstractContextManager[list[os.DirEntry[str]]]:
        entries = list(scan(path))
        removed.unlink()
        return nullcontext(entries)

    monkeypatch.setattr(os, "scandir", scan_and_remove)
    states.save([2], STATE)
    assert is_same(states.load([2]), STATE)
    assert not caplog.records


def test_a_new_file_is_kept_if_the_clock_was_set_back(folder: Path) -> None:
    states = StateFiles(folder, KEY, max_bytes=210_000)
    tomorrow = time.time() + 86_400
    save_at(folder, states, [1], tomorrow)
    save_at(folder, states, [2], tomorrow)
    states.save([3], STATE)
    assert is_same(states.load([3]), STATE)
    assert len(list(folder.iterdir())) == 2


def test_other_files_are_neither_counted_nor_removed(folder: Path) -> None:
    states = StateFiles(folder, KEY, max_bytes=210_000)
    states.save([1], STATE)
    name = only_file(folder).name
    others = ["notes.txt", "model.kv", name.upper(), f"{name}.bak", f"{name[:-4]}.kv", "x.tmp"]
    for other in others:
        (folder / other).write_bytes(bytes(200_000))
        os.utime(folder / other, (0, 0))
    directory, link = folder / ("0" * 64 + ".kv"), folder / ("1" * 64 + ".kv")
    directory.mkdir()
    link.symlink_to(folder / "notes.txt")
    for path in (directory, link):
        os.utime(path, (0, 0), follow_symlinks=False)
    states.save([2], STATE)
    assert is_same(states.load([1]), STATE)
    assert is_same(states.load([2]), STATE)
    states.save([3], STATE)
    assert all((folder / other).exists() for other in others)
    assert directory.is_dir()
    assert link.is_symlink()
    n_states, n_others = 2, 4  # others: two files, a directory and a link
    assert len(list(folder.glob("*.kv"))) == n_states + n_others


def test_a_state_over_the_limit_is_not_saved(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    states = StateFiles(folder, KEY, max_bytes=150_000)
    states.save([1], STATE)
    states.save([2], random_state(150_000))
    states.save([3], random_state(150_000))
    assert is_same(states.load([1]), STATE)
    assert states.load([2]) is None
    (warning,) = warnings(caplog)
    assert warning.startswith("A state of 150")
    assert warning.endswith(" bytes is not saved: the limit is 150000")
