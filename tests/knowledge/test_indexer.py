"""Synchronization of index and folder, with real files, embedding model and notifications."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.config.settings import load
from app.engine.embedder import Embedder
from app.knowledge import indexer
from app.knowledge.index.store import Store, StoreError
from app.knowledge.knowledge import DocumentState, Knowledge, KnowledgeOptions
from app.weights.embedding import resolve_embedding_model


class Notes:
    """An observer that records its calls."""

    def __init__(self) -> None:
        self.indexed: list[tuple[int, str | None]] = []
        self.state = (0, 0, 0)
        self.lookups: list[float] = []

    def on_indexed(self, n_chunks: int, problem: str | None) -> None:
        self.indexed.append((n_chunks, problem))

    def on_index(self, n_documents: int, n_chunks: int, n_skipped: int) -> None:
        self.state = (n_documents, n_chunks, n_skipped)

    def on_lookup(self, seconds: float) -> None:
        self.lookups.append(seconds)


@pytest.fixture(scope="module")
def embedder() -> Iterator[Embedder]:
    embedder = Embedder(resolve_embedding_model(load(None)), n_threads=2)
    yield embedder
    embedder.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    (folder / "sub" / "deeper").mkdir(parents=True)
    (folder / "bridge.md").write_text("# Bridges\n\nThe Wren Bridge opens at 06:25.")
    (folder / "sub" / "deeper" / "ferry.txt").write_text("The ferry is called the Patient Heron.")
    return folder


@pytest.fixture
def open_knowledge(
    folder: Path, tmp_path: Path, embedder: Embedder
) -> Iterator[Callable[..., tuple[Knowledge, Notes]]]:
    opened: list[Knowledge] = []

    def make(**changes: Any) -> tuple[Knowledge, Notes]:
        fields: dict[str, Any] = {"top_k": 4, "threshold": 0.3, "chunk_tokens": 200, "chunk_overlap": 40}
        notes = Notes()
        options = KnowledgeOptions(folder=folder, index=tmp_path / "index", **fields | changes)
        opened.append(Knowledge(options, embedder, notes))
        opened[-1].start()
        return opened[-1], notes

    yield make
    for knowledge in opened:
        knowledge.close()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.05)


def names(knowledge: Knowledge, state: str = "indexed") -> list[str]:
    return [document.name for document in knowledge.documents() if document.state == state]


def let_the_watch_begin() -> None:
    time.sleep(0.3)


def settled(knowledge: Knowledge) -> Knowledge:
    until(lambda: not knowledge.is_indexing)
    return knowledge


@pytest.mark.anyio
async def test_subfolders_are_read_and_hidden_files_are_not(
    open_knowledge: Callable[..., tuple[Knowledge, Notes]], folder: Path
) -> None:
    (folder / ".hidden.txt").write_text("secret")
    (folder / ".git").mkdir()
    (folder / ".git" / "notes.txt").write_text("secret")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "around").symlink_to(folder)
    (folder / os.fsdecode(b"not-utf-8-\xff.txt")).write_text("secret")
    (folder / "nowhere.txt").symlink_to(folder / "none")
    os.mkfifo(folder / "pipe.txt")
    knowledge, notes = open_knowledge()
    settled(knowledge)
    assert names(knowledge) == ["bridge.md", "sub/deeper/ferry.txt"]
    assert notes.state == (2, 2, 0)
    [found, *_] = await knowledge.search("What is the name of the ferry?")
    assert (found.chunk.file, found.chunk.text) == (
        "sub/deeper/ferry.txt",
        "The ferry is called the Patient Heron.",
    )
    assert len(notes.lookups) == 1


@pytest.mark.anyio
async def test_files_that_change_appear_and_vanish_are_noticed(
    open_knowledge: Callable[..., tuple[Knowledge, Notes]], folder: Path
) -> None:
    knowledge, notes = open_knowledge()
    settled(knowledge)
    assert len(notes.indexed) == 2
    let_the_watch_begin()
    (folder / "sub" / "new.html").write_text("<h1>Owls</h1><p>The owl watch is paid half as much again.</p>")
    until(lambda: "sub/new.html" in names(knowledge))
    (folder / "bridge.md").write_text("# Bridges\n\nThe Wren Bridge opens at noon.")
    until(lambda: len(notes.indexed) == 4)
    (folder / "sub" / "deeper" / "ferry.txt").unlink()
    until(lambda: names(knowledge) == ["bridge.md", "sub/new.html"])
    (folder / "bridge.md").rename(folder / "moved.md")
    until(lambda: names(knowledge) == ["moved.md", "sub/new.html"])
    [found, *_] = await knowledge.search("When does the Wren Bridge open?")
    assert (found.chunk.file, found.chunk.heading) == ("moved.md", "Bridges")
    assert found.chunk.text == "The Wren Bridge opens at noon."
    assert len(notes.indexed) == 5, "only what changed was read"


class Panic(BaseException):
    """As of a native library."""


def test_a_watch_that_fails_is_begun_again(
    folder: Path, open_knowledge: Callable[..., tuple[Knowledge, Notes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def failing(*_: object, **__: object) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(indexer, "_RESCAN_AFTER", 0.1)
        failed.set()
        raise Panic("forced")

    monkeypatch.setattr(indexer, "watch", failing)
    monkeypatch.setattr(indexer, "_RESCAN_AFTER", 0.1)
    knowledge, _ = open_knowledge()
    assert failed.wait(30)
    (folder / "later.txt").write_text("The lamp on the pier is green.")
    until(lambda: "later.txt" in names(knowledge))


def test_a_file_that_was_only_touched_is_not_embedded_again(
    open_knowledge: Callable[..., tuple[Knowledge, Notes]], folder: Path
) -> None:
    knowledge, notes = open_knowledge()
    settled(knowledge)
    let_the_watch_begin()
    os.utime(folder / "bridge.md", (1, 1))
    (folder / "new.txt").write_text("New.")
    until(lambda: "new.txt" in names(knowledge))
    assert len(notes.indexed) == 3


def test_unreadable_files_are_skipped_and_reported_and_the_rest_is_served(
    open_knowledge: Callable[..., tuple[Knowledge, Notes]], folder: Path
) -> None:
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing")
    (folder / "empty.md").write_text(" \n")
    knowledge, notes = open_knowledge()
    settled(knowledge)
    assert names(knowledge) == ["bridge.md", "sub/deeper/ferry.txt"]
    skipped = [document for document in knowledge.documents() if document.state == "skipped"]
    assert [document.name for document in skipped] == ["broken.pdf", "empty.md"]
    assert all(document.problem and document.n_chunks == 0 for document in skipped)
    assert notes.state == (2, 2, 2)
    let_the_watch_begin()
    (folder / "empty.md").write_text("No longer empty.")
    until(lambda: "empty.md" in names(knowledge))


def test_a_restart_reads_what_has_changed_since(
    open_knowledge: Callable[..., tuple[Knowledge, Notes]], folder: Path
) -> None:
    first, _ = open_knowledge()
    settled(first).close()
    (folder / "bridge.md").write_text("The bridge is shut.")
    (folder / "sub" / "deeper" / "ferry.txt").unlink()
    second, notes = open_knowledge()
    assert names(settled(second)) == ["bridge.md"]
    assert notes.indexed == [(1, None)]
    second.close()
    third, notes = open_knowledge()
    assert names(settled(third)) == ["bridge.md"]
    assert notes.indexed == []
    assert notes.state == (1, 1, 0), "the state is reported without changes, too"
    third.close()
    # Another passage size rebuilds the index.
    fourth, notes = open_knowledge(chunk_tokens=100)
    assert names(settled(fourth)) == ["bridge.md"]
    assert notes.indexed == [(1, None)]


def test_waiting_files_are_reported_and_do_not_delay_closing(
    open_knowledge: Callable[..., tuple[Knowledge, Notes]], folder: Path
) -> None:
    for number in range(40):
        (folder / f"{number:02}.txt").write_text(
            "\n\n".join(f"Word {i} is {number}. " * 40 for i in range(20))
        )
    knowledge, _ = open_knowledge()
    until(lambda: names(knowledge, "waiting"))
    assert knowledge.is_indexing
    assert DocumentState("39.txt", "waiting", 0, (folder / "39.txt").stat().st_size) in knowledge.documents()
    knowledge.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "indexer"]
    # Files indexed before are kept.
    again, _ = open_knowledge()
    assert len(names(again)) + len(names(again, "waiting")) <= 42


def test_a_missing_folder_keeps_its_documents(
    open_knowledge: Callable[..., tuple[Knowledge, Notes]], folder: Path
) -> None:
    knowledge, notes = open_knowledge()
    settled(knowledge)
    let_the_watch_begin()
    folder.rename(folder.with_name("away"))
    until(lambda: knowledge.problem)
    assert "does not exist" in str(knowledge.problem)
    assert names(knowledge) == ["bridge.md", "sub/deeper/ferry.txt"]
    (folder.with_name("away") / "new.txt").write_text("New.")
    folder.with_name("away").rename(folder)
    until(lambda: "new.txt" in names(knowledge))
    assert knowledge.problem is None
    assert len(notes.indexed) == 3
    let_the_watch_begin()
    (folder / "newer.txt").write_text("Newer.")
    until(lambda: "newer.txt" in names(knowledge))


def test_files_that_cannot_be_stored_wait_and_are_reported(
    open_knowledge: Callable[..., tuple[Knowledge, Notes]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise StoreError("the disk is full")

        patch.setattr(Store, "replace", full)  # a full disk cannot be produced everywhere
        knowledge, _ = open_knowledge()
        until(lambda: knowledge.problem)
        assert knowledge.problem == "the disk is full"
        assert names(knowledge, "waiting") == ["bridge.md", "sub/deeper/ferry.txt"]
        assert not knowledge.is_indexing
        let_the_watch_begin()
    (folder / "new.txt").write_text("New.")
    until(lambda: len(names(knowledge)) == 3)
    assert knowledge.problem is None


@pytest.mark.anyio
async def test_a_lost_index_is_reported_and_the_next_start_indexes_again(
    open_knowledge: Callable[..., tuple[Knowledge, Notes]],
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    knowledge, _ = open_knowledge()
    settled(knowledge)
    shutil.rmtree(tmp_path / "index")
    with pytest.raises(StoreError, match=r"KNOWLEDGE_INDEX=.* is gone; restart the server"):
        await knowledge.search("When does the Wren Bridge open?")
    let_the_watch_begin()
    (folder / "new.txt").write_text("The tower is 40 metres high.")
    until(lambda: knowledge.problem)
    assert "is gone" in str(knowledge.problem)
    assert "documents cannot be indexed: the index in KNOWLEDGE_INDEX=" in caplog.text
    knowledge.close()
    again, _ = open_knowledge()
    assert len(names(settled(again))) == 3
    [passage, *_] = await again.search("When does the Wren Bridge open?")
    assert passage.chunk.file == "bridge.md"


@pytest.mark.anyio
async def test_a_very_long_question_is_cut(
    open_knowledge: Callable[..., tuple[Knowledge, Notes]],
) -> None:
    knowledge, _ = open_knowledge()
    settled(knowledge)
    found = await knowledge.search("blah " * 100_000 + "What is the ferry called?", threshold=-1)
    assert len(found) == 2
    assert await knowledge.search("", threshold=2) == []
