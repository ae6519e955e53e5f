"""The backlog, without threads of its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from app.knowledge import backlog
from app.knowledge.backlog import Backlog
from app.knowledge.folder import FoundFile
from app.knowledge.index.store import IndexedFile

ALL = range(1 << 62)


def found(n: int) -> dict[str, FoundFile]:
    return {f"{i}.txt": FoundFile(Path(f"{i}.txt"), i, 0.0, f"stamp {i}") for i in range(n)}


def test_taking_all_files_compares_each_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    order, n_compared = backlog._order, 0

    def counting(waiting: backlog.WaitingFile) -> tuple[int, bool, int, str]:
        nonlocal n_compared
        n_compared += 1
        return order(waiting)

    monkeypatch.setattr(backlog, "_order", counting)
    files = Backlog([ALL], 20.0)
    files.update(found(2000), dict)
    taken = []
    while waiting := files.take(ALL, 0.0):
        taken.append(waiting.file.n_bytes)
        files.done(waiting)
    assert taken == list(range(2000)), "the smallest first"
    assert n_compared < 10 * 2000


def test_reading_the_index_blocks_nobody_and_files_indexed_meanwhile_do_not_wait() -> None:
    files = Backlog([ALL], 20.0)
    files.update(found(2), dict)
    first = files.take(ALL, 0.0)
    assert first is not None

    def read_index() -> Mapping[str, IndexedFile]:
        others = threading.Thread(target=lambda: (files.files(), files.done(first)), daemon=True)
        others.start()
        others.join(10)
        assert not others.is_alive(), "the lock is held"
        return {}

    files.update(found(2), read_index)
    assert list(files.files()) == ["1.txt"]


def test_a_version_found_while_the_previous_one_is_taken_waits() -> None:
    files = Backlog([ALL], 20.0)
    files.update(found(1), dict)
    old = files.take(ALL, 0.0)
    assert old is not None
    changed = {"0.txt": FoundFile(Path("0.txt"), 7, 0.0, "stamp 7")}
    files.update(changed, dict)
    assert files.take(ALL, 2.0) is None, "another lane has it"
    assert files.done(old)
    new = files.take(ALL, 2.0)
    assert new is not None
    assert new.file == changed["0.txt"]
