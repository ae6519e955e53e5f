"""The index on disk: stored files, search results and concurrent use."""

from __future__ import annotations

import logging
import math
import random
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.knowledge.chunk import Chunk, Passage
from app.knowledge.index.nearest import VectorIndex
from app.knowledge.index.store import IndexedFile, Store, StoreError
from app.knowledge.index.words import split_into_words
from tests.knowledge.index.stores import (
    DIMENSIONS,
    Vectors,
    open_store,
    put,
    search_words,
    some_vectors,
)


def test_chunks_are_found_with_their_exact_cosines(store: Store) -> None:
    vectors = some_vectors(300)
    for file in range(3):
        part = slice(file * 100, file * 100 + 100)
        put(store, f"{file}.txt", [f"text {n}" for n in range(part.start, part.stop)], vectors[part])
    query = some_vectors(1, 9)[0]
    found = store.search(query, "", top_k=5, threshold=-1)
    cosines = vectors @ query
    nearest = np.argsort(-cosines)[:5]
    assert [passage.chunk.text for passage in found] == [f"text {n}" for n in nearest]
    assert [passage.cosine for passage in found] == pytest.approx(cosines[nearest], abs=1e-4)
    assert store.n_chunks == 300


def test_a_found_chunk_equals_the_stored_one(store: Store) -> None:
    chunk = Chunk("a/b ü.pdf", 0, "One › Two", 7, 'It opens at 06:40.\n\0 "quoted" 🦆')
    store.replace(IndexedFile(chunk.file, "f", 5, 1, None), [chunk], some_vectors(1))
    assert store.search(some_vectors(1)[0], "opens", top_k=1, threshold=0)[0].chunk == chunk


def reference_search(
    texts: list[str], vectors: Vectors, query: Vectors, text: str, top_k: int, threshold: float
) -> list[int]:
    documents = [Counter(split_into_words("Heading " + each)) for each in texts]
    average = sum(sum(each.values()) for each in documents) / len(texts)
    bm25 = dict.fromkeys(range(len(texts)), 0.0)
    for word in set(split_into_words(text)):
        n = sum(word in each for each in documents)
        weight = max(math.log((len(texts) - n + 0.5) / (n + 0.5)), 1e-6)
        for number, each in enumerate(documents):
            tf = each[word]
            share = sum(each.values()) / average
            bm25[number] += weight * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * share))
    cosines = vectors @ query
    by_words = sorted((n for n in bm25 if bm25[n] > 0), key=lambda n: -bm25[n])[:40]
    scores = {n: float(cosines[n]) for n in (*np.argsort(-cosines)[:40].tolist(), *by_words)}
    for n in by_words:
        scores[n] += 0.3 * bm25[n] / bm25[by_words[0]]
    best = sorted(scores, key=lambda n: (-scores[n], -cosines[n]))
    return [n for n in best if cosines[n] >= threshold][:top_k]


@pytest.mark.parametrize("threshold", [-1.0, 0.1])
def test_results_equal_those_of_a_reference_search(store: Store, threshold: float) -> None:
    rng = random.Random(3)
    vocabulary = [f"w{n}" for n in range(400)]
    weights = [1 / (n + 1) for n in range(400)]
    texts = [" ".join(rng.choices(vocabulary, weights, k=rng.randint(20, 60))) + f" n{n}" for n in range(300)]
    vectors = some_vectors(300)
    put(store, "all.txt", texts, vectors)
    for seed in range(20):
        query = some_vectors(1, 100 + seed)[0]
        text = " ".join(rng.choices(vocabulary, weights, k=8)) + f" n{seed * 7}"
        found = store.search(query, text, top_k=10, threshold=threshold)
        assert [passage.chunk.position for passage in found] == reference_search(
            texts, vectors, query, text, 10, threshold
        )
        assert all(passage.cosine >= threshold for passage in found)
        assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)


def test_a_search_is_limited_to_the_given_files(store: Store) -> None:
    for name in "abc":
        put(store, name, [f"bridge {name} {n}" for n in range(30)])
    query = some_vectors(1)[0]
    found = store.search(query, "bridge b", top_k=50, threshold=-1, files=["a", "c", "gone"])
    assert {passage.chunk.file for passage in found} == {"a", "c"}
    assert store.search(query, "bridge", top_k=5, threshold=-1, files=[]) == []
    assert search_words(store, "b", files=["a"]) == []


def test_replaced_and_removed_files_are_not_found(store: Store, tmp_path: Path) -> None:
    put(store, "a", ["old heron", "old crane"])
    put(store, "b", ["a wren"])
    put(store, "a", ["new robin"], mark="2")
    assert search_words(store, "heron crane") == []
    assert search_words(store, "robin") == ["new robin"]
    assert store.n_chunks == 2
    store.remove("b")
    store.remove("never there")
    assert search_words(store, "wren") == []
    assert store.files() == {"a": IndexedFile("a", "2", 10, 1, None)}
    store.close()
    with open_store(tmp_path / "index") as reopened:
        assert reopened.files() == {"a": IndexedFile("a", "2", 10, 1, None)}
        assert search_words(reopened, "robin") == ["new robin"]
        assert reopened.n_chunks == 1


def test_a_skipped_file_is_stored_with_its_problem(store: Store) -> None:
    put(store, "a.pdf", ["readable"])
    skipped = IndexedFile("a.pdf", "2", 99, 0, "has no text; it may be a scan")
    store.replace(skipped, [], np.empty((0, DIMENSIONS), np.float32))
    assert store.files() == {"a.pdf": skipped}
    assert store.n_chunks == 0
    assert store.search(some_vectors(1)[0], "readable", top_k=3, threshold=-1) == []


class SlowCommits:
    """A connection with a delay after each commit. It reveals readers that do not wait for the writer."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        cursor = self._db.execute(statement, *values)
        if statement == "commit":
            time.sleep(0.004)
        return cursor


def test_readers_find_whole_files_during_a_write(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    nearest = VectorIndex.nearest

    def slow_nearest(*arguments: Any) -> list[int]:
        time.sleep(0.004)
        return nearest(*arguments)

    monkeypatch.setattr(VectorIndex, "nearest", slow_nearest)
    store._db = SlowCommits(store._db)  # type: ignore[assignment]
    errors: list[BaseException] = []
    reads = [0] * 4
    done = threading.Event()

    def write_file(turn: int) -> None:
        texts = [f"turn{turn} common" for _ in range(15)]
        put(store, "a", texts, np.ones((15, DIMENSIONS), np.float32), str(turn))
        put(store, "b", ["other"] * 5, -np.ones((5, DIMENSIONS), np.float32))  # so that ids are not reused

    def read(reader: int) -> None:
        try:
            while not done.is_set():
                found = store.search(np.ones(DIMENSIONS, np.float32), "common", top_k=30, threshold=0.9)
                assert len(found) == 15
                assert len({passage.chunk.text for passage in found}) == 1
                assert min(passage.score for passage in found) > 1.2  # found by vector and by words
                assert list(store.files()) == ["a", "b"]
                reads[reader] += 1
        except BaseException as error:
            errors.append(error)

    write_file(0)
    readers = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for reader in readers:
        reader.start()
    for turn in range(1, 100):
        write_file(turn)
    done.set()
    for reader in readers:
        reader.join()
    assert errors == []
    assert min(reads) > 0


def test_another_identity_creates_a_new_index(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_store(tmp_path) as store:
        put(store, "a", ["heron"])
    with open_store(tmp_path) as store:
        assert store.n_chunks == 1
    assert caplog.records == []
    with open_store(tmp_path, "b") as store:
        assert (store.n_chunks, store.files()) == (0, {})
    with Store(tmp_path, dimensions=7, identity="b") as store:
        put(store, "a", ["heron"], some_vectors(1, dimensions=7))
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "another embedding model" in caplog.text


def test_mismatched_arguments_are_rejected(store: Store) -> None:
    chunk = Chunk("a", 0, "", None, "text")
    with pytest.raises(ValueError, match="n_chunks is 2, but there are 1 chunks of it"):
        store.replace(IndexedFile("a", "1", 1, 2, None), [chunk], some_vectors(1))
    with pytest.raises(ValueError, match="n_chunks is"):
        store.replace(IndexedFile("b", "1", 1, 1, None), [chunk], some_vectors(1))
    with pytest.raises(ValueError, match="finite"):
        store.replace(
            IndexedFile("a", "1", 1, 1, None), [chunk], np.full((1, DIMENSIONS), np.nan, np.float32)
        )
    with pytest.raises(ValueError, match="reshape"):
        store.search(np.ones(3, np.float32), "x", top_k=1, threshold=0)
    assert store.files() == {}


def test_a_closed_store_rejects_calls(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.search(some_vectors(1)[0], "x", top_k=1, threshold=0)
    with pytest.raises(StoreError, match="closed"):
        put(store, "a", ["x"])


def test_equal_passages_keep_their_order(store: Store) -> None:
    put(store, "a", ["same"] * 10, np.ones((10, DIMENSIONS), np.float32))
    found: list[Passage] = store.search(np.ones(DIMENSIONS, np.float32), "same", top_k=10, threshold=0)
    assert [passage.chunk.position for passage in found] == list(range(10))
