"""Faults during indexing are told, cost the right file, and are retried."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.engine.embedder import Embedder
from app.knowledge import indexer, watcher
from app.knowledge.folder import Folder
from app.knowledge.index.store import IndexedFile, Store, StoreError
from app.knowledge.knowledge import Knowledge, KnowledgeOptions
from tests.knowledge.conftest import Open, Recorder, names, until, wait_for_the_watch


def test_a_file_that_the_machine_could_not_read_is_read_by_a_later_scan(
    open_knowledge: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "_RESCAN_AFTER", 0.2)
    monkeypatch.setattr(watcher, "_WATCH_TIMEOUT", 100)
    with monkeypatch.context() as patch:

        def failing(*_: object, **__: object) -> None:
            raise OSError(11, "Resource temporarily unavailable")

        patch.setattr(subprocess, "Popen", failing)
        knowledge, _ = open_knowledge()
        until(lambda: names(knowledge, "skipped"))
        skipped = next(file for file in knowledge.documents() if file.state == "skipped")
        assert "temporarily unavailable" in str(skipped.problem)
    until(lambda: names(knowledge) == ["bridge.md", "sub/deeper/ferry.txt"])


def test_a_problem_remains_while_the_next_scan_runs(
    open_knowledge: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(Store, "replace", full)
    knowledge, _ = open_knowledge()
    until(lambda: knowledge.problem)
    wait_for_the_watch()
    files, seen = Store.files, []

    def watching(store: Store) -> dict[str, IndexedFile]:
        seen.append(knowledge.problem)
        return files(store)

    monkeypatch.setattr(Store, "files", watching)
    (folder / "new.txt").write_text("New.")
    until(lambda: seen)
    assert set(seen) == {"the disk is full"}


def test_a_failure_to_store_a_file_does_not_skip_the_next_one(
    open_knowledge: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file is stored while the second one is split."""
    long = "\n\n".join(f"Paragraph {i} is long. " * 20 for i in range(150))
    (folder / "sub" / "deeper" / "ferry.txt").write_text(long)
    replace, failed = Store.replace, threading.Event()

    def failing(store: Store, file: IndexedFile, *others: Any) -> None:
        if file.name == "bridge.md" and not failed.is_set():
            failed.set()
            raise RuntimeError("forced")
        replace(store, file, *others)

    monkeypatch.setattr(Store, "replace", failing)
    knowledge, events = open_knowledge()
    until(lambda: knowledge.problem)
    assert knowledge.problem == "indexing failed: forced"
    wait_for_the_watch()
    (folder / "new.txt").write_text("New.")
    until(lambda: len(names(knowledge)) == 3)
    assert [problem for _, problem in events.indexed] == [None] * 3


def test_an_index_can_be_opened_after_a_failed_start(
    folder: Path, tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = KnowledgeOptions(folder, tmp_path / "index", 4, 0.3, 200, 40)
    with monkeypatch.context() as patch:

        def failing(*_: object, **__: object) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(indexer, "Lane", failing)
        with pytest.raises(RuntimeError) as error:
            Knowledge(options, embedder, Recorder())
    Knowledge(options, embedder, Recorder()).close()
    assert "new thread" in str(error.value), "while the traceback holds the first one"


def test_a_watch_scans_at_its_begin_even_soon_after_the_machine_has_booted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "time", SimpleNamespace(monotonic=lambda: 5.0))
    monkeypatch.setattr(watcher, "_WATCH_TIMEOUT", 50)
    scans: list[float] = []
    watching = watcher.Watcher(Folder(folder, follow_links=False), lambda: scans.append(time.monotonic()))
    watching.start()
    try:
        until(lambda: len(scans) == 2)
    finally:
        watching.close()
