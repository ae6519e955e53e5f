"""The index after kills, damage, loss and a full disk, and its use by a second process."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

from app.knowledge.index import tables
from app.knowledge.index.store import Store, StoreError
from tests.knowledge.index.stores import (
    DIMENSIONS,
    open_store,
    put,
    search_words,
    some_vectors,
)

WRITER = """
import sys, numpy as np
from pathlib import Path
from app.knowledge.chunk import Chunk, Passage
from app.knowledge.index.nearest import VectorIndex, pack
from app.knowledge.index.store import IndexedFile, Store
store = Store(Path(sys.argv[1]), dimensions=48, identity="a")
print("ready", flush=True)
turn = 0
while True:
    turn += 1
    for name in "abc":
        n = 20 + turn % 30
        chunks = [Chunk(name, at, "", None, f"{name} turn{turn} at{at}") for at in range(n)]
        vectors = np.full((n, 48), turn, np.float32) + np.eye(48, dtype=np.float32)[np.arange(n) % 48]
        store.replace(IndexedFile(name, str(turn), turn, n, None), chunks, vectors)
"""


def start_writer(folder: Path) -> subprocess.Popen[str]:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    return writer


def assert_consistent(store: Store) -> None:
    """Fail unless chunks, vectors and words of each file are of one turn."""
    for name, file in store.files().items():
        found = store.search(np.ones(DIMENSIONS, np.float32), "", top_k=1000, threshold=-1, files=[name])
        texts = sorted(passage.chunk.text for passage in found)
        assert texts == sorted(f"{name} turn{file.fingerprint} at{at}" for at in range(file.n_chunks))
        by_words = search_words(store, f"turn{file.fingerprint}", top_k=1000, files=[name])
        assert len(by_words) == file.n_chunks
    assert store.n_chunks == sum(file.n_chunks for file in store.files().values())


@pytest.mark.parametrize("milliseconds", [0, 3, 11, 40, 170, 700])
@pytest.mark.slow
def test_after_a_kill_every_file_is_old_or_new(tmp_path: Path, milliseconds: int) -> None:
    for run in range(2):  # the second run opens the index of the first
        with start_writer(tmp_path) as writer:
            time.sleep((milliseconds + run) / 1000)
            writer.send_signal(signal.SIGKILL)
        with open_store(tmp_path) as store:
            assert_consistent(store)
            with sqlite3.connect(tmp_path / "index.sqlite3") as db:
                assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
                db.execute("insert into words(words) values ('integrity-check')")
            db.close()
            put(store, "d", ["one more"])
            assert search_words(store, "more") == ["one more"]
            store.remove("d")


def test_a_second_process_is_rejected(tmp_path: Path) -> None:
    with start_writer(tmp_path) as writer:
        try:
            with pytest.raises(StoreError, match=r"KNOWLEDGE_INDEX=.* is in use by another process"):
                open_store(tmp_path)
        finally:
            writer.kill()
    with open_store(tmp_path), pytest.raises(StoreError, match="in use"):
        open_store(tmp_path)


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "no table"])
def test_a_damaged_index_is_replaced(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    with open_store(tmp_path) as store:
        put(store, "a", [f"heron {n}" for n in range(200)])
    file = tmp_path / "index.sqlite3"
    if damage == "no table":
        with sqlite3.connect(file) as db:
            db.execute("drop table files")
        db.close()
    else:
        whole = file.read_bytes()
        contents = {"garbage": os.urandom(5000), "cut": whole[: len(whole) // 8], "empty": b""}
        file.write_bytes(contents[damage])
    with open_store(tmp_path) as store:
        assert store.files() == {}
        put(store, "a", ["wren"])
        assert search_words(store, "wren") == ["wren"]
    assert "a new index is created in" in caplog.text


@pytest.mark.parametrize("loss", ["folder", "file", "replaced"])
def test_a_lost_index_is_an_error_until_the_next_start(tmp_path: Path, loss: str) -> None:
    folder = tmp_path / "index"
    with open_store(folder) as store:
        put(store, "a", ["heron"])
        if loss == "file":
            (folder / "index.sqlite3").unlink()
        else:
            shutil.rmtree(folder)
        if loss == "replaced":
            with open_store(folder) as other:
                put(other, "b", ["wren"])
        with pytest.raises(StoreError, match=r"KNOWLEDGE_INDEX=.*index is gone; restart the server"):
            store.search(some_vectors(1)[0], "heron", top_k=1, threshold=-1)
        with pytest.raises(StoreError, match="is gone"):
            store.files()
        with pytest.raises(StoreError, match="is gone"):
            put(store, "c", ["crane"])
    with open_store(folder) as store:
        assert [*store.files()] == (["b"] if loss == "replaced" else [])
        put(store, "d", ["robin"])
        assert search_words(store, "robin") == ["robin"]


def test_damage_during_use_is_repaired_at_the_next_start(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        put(store, "a", [f"heron {n}" for n in range(2000)])
    file = tmp_path / "index.sqlite3"
    whole = bytearray(file.read_bytes())
    first = len(whole) // 3
    whole[first:] = b"\xa5" * (len(whole) - first)
    file.write_bytes(whole)

    def use(store: Store) -> None:
        for n in range(50):
            store.search(some_vectors(1, n)[0], f"heron {n}", top_k=5, threshold=-1)
        put(store, "a", ["wren"])

    with open_store(tmp_path) as store, pytest.raises(StoreError, match=r"is damaged .*; restart the server"):
        use(store)
    with open_store(tmp_path) as store:
        assert store.n_chunks == 0
        put(store, "a", ["heron"])
        use(store)


def test_a_full_disk_changes_nothing(store: Store) -> None:
    put(store, "a", ["heron"])
    store._db.execute("pragma max_page_count = 60")
    with pytest.raises(StoreError, match=r"KNOWLEDGE_INDEX=.*full.*disk with free space"):
        put(store, "a", [f"{n} " * 300 for n in range(2000)], mark="2")
    assert store.files()["a"].fingerprint == "1"
    assert search_words(store, "heron") == ["heron"]
    store._db.execute("pragma max_page_count = 100000")
    put(store, "a", ["wren"], mark="3")
    assert search_words(store, "wren") == ["wren"]


def test_an_unusable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(
        StoreError, match=r"KNOWLEDGE_INDEX=.*file/x cannot be used: .*set it to a writable folder"
    ):
        open_store(tmp_path / "file" / "x")
    (tmp_path / "index.sqlite3").mkdir()
    with pytest.raises(StoreError, match=r"KNOWLEDGE_INDEX=.* cannot be used"):
        open_store(tmp_path)


def test_a_search_during_close_finishes_or_fails_as_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    put(store, "a", ["one"])
    file_ids = tables.file_ids

    def closing(db: sqlite3.Connection, files: Collection[str]) -> Collection[int]:
        store.close()
        return file_ids(db, files)

    monkeypatch.setattr(tables, "file_ids", closing)
    with pytest.raises(StoreError, match="the index is closed"):
        store.search(some_vectors(1)[0], "one", top_k=1, threshold=-1, files=["a"])
