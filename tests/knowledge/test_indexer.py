"""The index follows a folder, with real files, embedding model and file notifications."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from app.knowledge import backlog, lane, watcher
from app.knowledge.folder import Folder
from app.knowledge.index.store import Store, StoreError
from app.knowledge.knowledge import DocumentState
from app.knowledge.reading.reader import Document, DocumentReader
from tests.knowledge.conftest import Open, names, settled, until, wait_for_the_watch


@pytest.mark.anyio
async def test_subfolders_are_read_and_hidden_files_are_not(open_knowledge: Open, folder: Path) -> None:
    (folder / ".hidden.txt").write_text("secret")
    (folder / ".git").mkdir()
    (folder / ".git" / "events.txt").write_text("secret")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "around").symlink_to(folder)
    (folder / os.fsdecode(b"not-utf-8-\xff.txt")).write_text("secret")
    (folder / "nowhere.txt").symlink_to(folder / "none")
    os.mkfifo(folder / "pipe.txt")
    knowledge, events = open_knowledge()
    settled(knowledge)
    assert names(knowledge) == ["bridge.md", "sub/deeper/ferry.txt"]
    assert events.state == (2, 2, 0)
    [found, *_] = await knowledge.search("What is the name of the ferry?")
    assert (found.chunk.file, found.chunk.text) == (
        "sub/deeper/ferry.txt",
        "The ferry is called the Patient Heron.",
    )
    assert len(events.lookups) == 1


@pytest.mark.anyio
async def test_new_changed_and_removed_files_are_indexed(open_knowledge: Open, folder: Path) -> None:
    knowledge, events = open_knowledge()
    settled(knowledge)
    assert len(events.indexed) == 2
    wait_for_the_watch()
    (folder / "sub" / "new.html").write_text("<h1>Owls</h1><p>The owl watch is paid half as much again.</p>")
    until(lambda: "sub/new.html" in names(knowledge))
    (folder / "bridge.md").write_text("# Bridges\n\nThe Wren Bridge opens at noon.")
    until(lambda: len(events.indexed) == 4)
    (folder / "sub" / "deeper" / "ferry.txt").unlink()
    until(lambda: names(knowledge) == ["bridge.md", "sub/new.html"])
    (folder / "bridge.md").rename(folder / "moved.md")
    until(lambda: names(knowledge) == ["moved.md", "sub/new.html"])
    [found, *_] = await knowledge.search("When does the Wren Bridge open?")
    assert (found.chunk.file, found.chunk.heading) == ("moved.md", "Bridges")
    assert found.chunk.text == "The Wren Bridge opens at noon."
    assert len(events.indexed) == 5, "only changed files are read"


class Panic(BaseException):
    """An exception like those of a native library."""


def test_a_failed_watch_is_restarted(
    folder: Path, open_knowledge: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def failing(*_: object, **__: object) -> None:
        monkeypatch.setattr(watcher, "watch", watch)
        failed.set()
        raise Panic("forced")

    watch = watcher.watch
    monkeypatch.setattr(watcher, "watch", failing)
    monkeypatch.setattr(watcher, "_RESCAN_AFTER", 0.1)
    knowledge, _ = open_knowledge()
    assert failed.wait(120)
    (folder / "later.txt").write_text("The lamp on the pier is green.")
    until(lambda: "later.txt" in names(knowledge))


def test_a_file_with_a_new_time_only_is_not_embedded_again(open_knowledge: Open, folder: Path) -> None:
    knowledge, events = open_knowledge()
    settled(knowledge)
    wait_for_the_watch()
    os.utime(folder / "bridge.md", (1, 1))
    (folder / "new.txt").write_text("New.")
    until(lambda: "new.txt" in names(knowledge))
    assert len(events.indexed) == 3


def test_unreadable_files_are_skipped_and_reported(open_knowledge: Open, folder: Path) -> None:
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing")
    (folder / "empty.md").write_text(" \n")
    knowledge, events = open_knowledge()
    settled(knowledge)
    assert names(knowledge) == ["bridge.md", "sub/deeper/ferry.txt"]
    skipped = [document for document in knowledge.documents() if document.state == "skipped"]
    assert [document.name for document in skipped] == ["broken.pdf", "empty.md"]
    assert all(document.problem and document.n_chunks == 0 for document in skipped)
    assert events.state == (2, 2, 2)
    wait_for_the_watch()
    (folder / "empty.md").write_text("No longer empty.")
    until(lambda: "empty.md" in names(knowledge))


def test_a_restart_indexes_changed_files_only(open_knowledge: Open, folder: Path) -> None:
    first, _ = open_knowledge()
    settled(first).close()
    (folder / "bridge.md").write_text("The bridge is shut.")
    (folder / "sub" / "deeper" / "ferry.txt").unlink()
    second, events = open_knowledge()
    assert names(settled(second)) == ["bridge.md"]
    assert events.indexed == [(1, None)]
    second.close()
    third, events = open_knowledge()
    assert names(settled(third)) == ["bridge.md"]
    assert events.indexed == []
    assert events.state == (1, 1, 0), "the state is reported without changes"
    third.close()
    # Another passage size rebuilds the index.
    fourth, events = open_knowledge(chunk_tokens=100)
    assert names(settled(fourth)) == ["bridge.md"]
    assert events.indexed == [(1, None)]


def test_waiting_files_are_reported_and_do_not_delay_close(open_knowledge: Open, folder: Path) -> None:
    for number in range(40):
        (folder / f"{number:02}.txt").write_text(
            "\n\n".join(f"Word {i} is {number}. " * 40 for i in range(20))
        )
    knowledge, _ = open_knowledge()
    until(lambda: names(knowledge) and names(knowledge, "waiting"))
    assert knowledge.is_indexing
    last = next(document for document in knowledge.documents() if document.name == "39.txt")
    assert last.waiting_since is not None
    n_bytes = (folder / "39.txt").stat().st_size
    assert last == DocumentState("39.txt", "waiting", 0, n_bytes, None, last.waiting_since)
    indexed = names(knowledge)
    knowledge.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "indexer"]
    again, _ = open_knowledge()
    assert set(indexed) <= set(names(again)), "files indexed before are kept"


def test_documents_of_a_missing_folder_are_kept(open_knowledge: Open, folder: Path) -> None:
    knowledge, events = open_knowledge()
    settled(knowledge)
    wait_for_the_watch()
    folder.rename(folder.with_name("moved"))
    until(lambda: knowledge.problem)
    assert "does not exist" in str(knowledge.problem)
    assert names(knowledge) == ["bridge.md", "sub/deeper/ferry.txt"]
    (folder.with_name("moved") / "new.txt").write_text("New.")
    folder.with_name("moved").rename(folder)
    until(lambda: "new.txt" in names(knowledge))
    assert knowledge.problem is None
    assert len(events.indexed) == 3
    wait_for_the_watch()
    (folder / "newer.txt").write_text("Newer.")
    until(lambda: "newer.txt" in names(knowledge))


def test_a_failure_to_store_is_reported_and_retried(
    open_knowledge: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise StoreError("the disk is full")

        patch.setattr(Store, "replace", full)  # a full disk needs privileges
        knowledge, _ = open_knowledge()
        until(lambda: knowledge.problem)
        assert knowledge.problem == "the disk is full"
        assert names(knowledge, "waiting") == ["bridge.md", "sub/deeper/ferry.txt"]
        assert not knowledge.is_indexing
        wait_for_the_watch()
    (folder / "new.txt").write_text("New.")
    until(lambda: len(names(knowledge)) == 3)
    assert knowledge.problem is None


@pytest.mark.anyio
async def test_a_lost_index_is_reported_and_the_next_start_indexes_again(
    open_knowledge: Open,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    knowledge, _ = open_knowledge()
    settled(knowledge)
    shutil.rmtree(tmp_path / "index")
    with pytest.raises(StoreError, match=r"KNOWLEDGE_INDEX=.* is gone; restart the server"):
        await knowledge.search("When does the Wren Bridge open?")
    wait_for_the_watch()
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
async def test_a_very_long_question_is_truncated(
    open_knowledge: Open,
) -> None:
    knowledge, _ = open_knowledge()
    settled(knowledge)
    found = await knowledge.search("blah " * 100_000 + "What is the ferry called?", threshold=-1)
    assert len(found) == 2
    assert await knowledge.search("", threshold=2) == []


# --- nothing stops indexing


def test_a_file_that_takes_long_to_read_does_not_delay_others(
    open_knowledge: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of the parser is quadratic in the depth."""
    monkeypatch.setattr("app.knowledge.reading.reader._WALL_TIME_FACTOR", 200)  # of a busy machine
    (folder / "a.html").write_text("<div>" * 300_000)
    knowledge, _ = open_knowledge(file_seconds=600.0)
    until(lambda: names(knowledge) == ["bridge.md", "sub/deeper/ferry.txt"])
    (folder / "later.txt").write_text("The lamp on the pier is green.")
    until(lambda: "later.txt" in names(knowledge))
    assert names(knowledge, "waiting") == ["a.html"]
    knowledge.close()
    again, _ = open_knowledge(file_seconds=0.5)
    [skipped] = [document for document in settled(again).documents() if document.state == "skipped"]
    assert skipped.name == "a.html"
    assert "takes more than 0.5 s of CPU time (KNOWLEDGE_FILE_SECONDS)" in str(skipped.problem)
    again.close()
    with_equal_limit, events = open_knowledge(file_seconds=0.5)
    settled(with_equal_limit).close()
    assert events.indexed == [], "it is not read again"
    with_more_time, _ = open_knowledge(file_seconds=600.0)
    until(lambda: names(with_more_time, "waiting") == ["a.html"])


def test_small_files_are_indexed_while_a_large_one_is_embedded(open_knowledge: Open, folder: Path) -> None:
    (folder / "a.txt").write_text("\n\n".join(f"Paragraph {i} is long. " * 20 for i in range(2000)))
    knowledge, _ = open_knowledge()
    until(lambda: names(knowledge) == ["bridge.md", "sub/deeper/ferry.txt"])
    (folder / "later.txt").write_text("The lamp on the pier is green.")
    until(lambda: "later.txt" in names(knowledge))
    assert names(knowledge, "waiting") == ["a.txt"]


@pytest.mark.anyio
async def test_a_file_that_still_changes_waits_and_its_old_version_is_searchable(
    open_knowledge: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knowledge, events = open_knowledge()
    settled(knowledge)
    assert knowledge.n_waiting() == 0
    wait_for_the_watch()
    monkeypatch.setattr(backlog, "_RESTS_AFTER", 3600.0)
    began = time.time()
    with (folder / "bridge.md").open("a") as file:
        for number in range(10):
            file.write(f"Line {number}.\n")
            file.flush()
            until(lambda: names(knowledge, "waiting") == ["bridge.md"])
        size = (folder / "bridge.md").stat().st_size
        until(lambda: size in [document.n_bytes for document in knowledge.documents()])
        [state] = [document for document in knowledge.documents() if document.state == "waiting"]
        assert (state.n_chunks, state.problem) == (1, None)
        assert state.waiting_since is not None
        assert began <= state.waiting_since <= time.time()
        assert knowledge.is_indexing
        assert (knowledge.n_waiting(), knowledge.n_waiting(["bridge.md"]), knowledge.n_waiting(["b"])) == (
            1,
            1,
            0,
        )
        [found, *_] = await knowledge.search("When does the Wren Bridge open?")
        assert "Line" not in found.chunk.text
        monkeypatch.setattr(backlog, "_RESTS_AFTER", 0.0)
        file.write("The last line.\n")
    settled_at_last = [*events.indexed]
    until(lambda: not names(knowledge, "waiting"))
    [found, *_] = await knowledge.search("When does the Wren Bridge open?")
    assert found.chunk.text.endswith("The last line.")
    assert len(settled_at_last) == 2, "no fragment was indexed"


def test_a_file_that_changes_while_it_is_read_is_read_again(
    open_knowledge: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = DocumentReader.read
    read_texts: list[str] = []

    def changing(reader: DocumentReader, path: Path) -> Document:
        document = read(reader, path)
        read_texts.append(document.blocks[-1].text)
        if len(read_texts) == 1:
            path.write_text("The end.")
        return document

    monkeypatch.setattr(DocumentReader, "read", changing)
    (folder / "bridge.md").unlink()
    knowledge, events = open_knowledge()
    settled(knowledge)
    assert read_texts == ["The ferry is called the Patient Heron.", "The end."]
    assert events.indexed == [(1, None)]


def test_a_defect_costs_one_file(open_knowledge: Open, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = lane.split_into_chunks

    def failing(document: Document, *, file: str, **others: Any) -> Any:
        if file == "bridge.md":
            raise RuntimeError("forced")
        return split(document, file=file, **others)

    monkeypatch.setattr(lane, "split_into_chunks", failing)
    knowledge, events = open_knowledge()
    settled(knowledge)
    assert names(knowledge) == ["sub/deeper/ferry.txt"]
    assert events.state == (1, 1, 1)
    assert knowledge.documents()[0].problem == "cannot be indexed: forced"


def test_links_are_followed_within_the_folder_only(
    open_knowledge: Open, folder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("The key lies under the mat.")
    (folder / "passwd.txt").symlink_to(outside / "secret.txt")
    (folder / "more").symlink_to(outside)
    (folder / "inside.md").symlink_to(folder / "bridge.md")
    (folder / "twice.txt").symlink_to(folder / "more" / "secret.txt")
    knowledge, _ = open_knowledge()
    inside = ["bridge.md", "inside.md", "sub/deeper/ferry.txt"]
    assert names(settled(knowledge)) == inside
    assert names(knowledge, "skipped") == ["passwd.txt", "twice.txt"]
    assert {document.problem for document in knowledge.documents() if document.problem} == {
        "is a link to a file outside DATA_PATH; KNOWLEDGE_FOLLOW_LINKS=on follows it"
    }
    knowledge.close()
    again, _ = open_knowledge(follow_links=True)
    linked = ["more/secret.txt", "passwd.txt", "twice.txt"]
    assert names(settled(again)) == sorted([*inside, *linked])


def test_a_file_that_was_replaced_by_a_link_is_not_read(folder: Path, tmp_path: Path) -> None:
    documents = Folder(folder, follow_links=False)
    before = documents.file("bridge.md")
    assert before is not None
    assert before.problem is None
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "bridge.md").unlink()
    (folder / "bridge.md").symlink_to(tmp_path / "secret.txt")
    after = documents.file("bridge.md")
    assert after is not None
    assert after.problem is not None
    assert before != after
