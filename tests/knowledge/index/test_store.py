"""The index on disk: search results, and consistency after faults."""

from __future__ import annotations

import logging
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.knowledge.chunk import Chunk, Passage
from app.knowledge.index import tables
from app.knowledge.index.nearest import VectorIndex, pack
from app.knowledge.index.store import IndexedFile, Store, StoreError
from app.knowledge.index.words import split_into_words

DIMENSIONS = 48
Vectors = NDArray[np.float32]


def unit(vectors: Vectors) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def some_vectors(n: int, seed: int = 0, dimensions: int = DIMENSIONS) -> Vectors:
    return unit(np.random.default_rng(seed).standard_normal((n, dimensions)))


def open_store(folder: Path, identity: str = "a") -> Store:
    return Store(folder, dimensions=DIMENSIONS, identity=identity)


def put(store: Store, name: str, texts: list[str], vectors: Vectors | None = None, mark: str = "1") -> None:
    chunks = [Chunk(name, n, "Heading", None, text) for n, text in enumerate(texts)]
    vectors = some_vectors(len(texts), len(name)) if vectors is None else vectors
    store.replace(IndexedFile(name, mark, 10, len(texts), None), chunks, vectors)


def ask(store: Store, text: str, *, top_k: int = 5, files: list[str] | None = None) -> list[str]:
    """Search by words alone."""
    with store._reading() as (db, _):
        numbers = list(
            tables.ranked_by_words(db, text, top_k, None if files is None else tables.file_ids(db, files))
        )
        chunks = tables.read_chunks(db, numbers)
    return [chunks[number].text for number in numbers]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "index") as opened:
        yield opened


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


def test_a_chunk_comes_back_as_it_was_put(store: Store) -> None:
    chunk = Chunk("a/b ü.pdf", 0, "One › Two", 7, 'It opens at 06:40.\n\0 "quoted" 🦆')
    store.replace(IndexedFile(chunk.file, "f", 5, 1, None), [chunk], some_vectors(1))
    assert store.search(some_vectors(1)[0], "opens", top_k=1, threshold=0)[0].chunk == chunk


def naive_search(
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
def test_fusion_is_that_of_a_naive_search(store: Store, threshold: float) -> None:
    chance = random.Random(3)
    vocabulary = [f"w{n}" for n in range(400)]
    weights = [1 / (n + 1) for n in range(400)]
    texts = [
        " ".join(chance.choices(vocabulary, weights, k=chance.randint(20, 60))) + f" n{n}" for n in range(300)
    ]
    vectors = some_vectors(300)
    put(store, "all.txt", texts, vectors)
    for seed in range(20):
        query = some_vectors(1, 100 + seed)[0]
        text = " ".join(chance.choices(vocabulary, weights, k=8)) + f" n{seed * 7}"
        found = store.search(query, text, top_k=10, threshold=threshold)
        assert [passage.chunk.position for passage in found] == naive_search(
            texts, vectors, query, text, 10, threshold
        )
        assert all(passage.cosine >= threshold for passage in found)
        assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)


@pytest.mark.parametrize("dimensions", [100, 384])
def test_the_nearest_are_among_twice_as_many_by_packed_vectors(dimensions: int) -> None:
    spread = np.arange(1, dimensions + 1) ** -0.5  # the variance of embeddings differs between directions
    chance = np.random.default_rng(1)
    turned = np.linalg.qr(chance.standard_normal((dimensions, dimensions)))[0]
    vectors = unit((chance.standard_normal((12_000, dimensions)) * spread @ turned).astype(np.float32))
    queries = unit((chance.standard_normal((30, dimensions)) * spread @ turned).astype(np.float32))
    packed = pack(vectors)
    halves = [(1, 0, 5000, packed[:5000].tobytes()), (2, 5000, 7000, packed[5000:].tobytes())]
    index = VectorIndex.of_files(dimensions, halves)
    for query in queries:
        nearest = np.argsort(-(vectors @ query))
        found = index.nearest(query, 40, None)
        assert len({*found}) == 40
        assert {*nearest[:20].tolist()} <= {*found}
        of_second = [number for number in nearest.tolist() if number >= 5000]
        assert {*of_second[:20]} <= {*index.nearest(query, 40, [2])}


def test_rows_of_deleted_chunks_are_reused() -> None:
    vectors = some_vectors(3000)
    index = VectorIndex.of_files(DIMENSIONS, [])
    for turn in range(60):
        part = vectors[turn * 50 : turn * 50 + 50]
        before, number = index, turn * 50
        index = (index if turn < 2 else index.without_file(turn - 2)).with_file(turn, number, pack(part))
        assert len(index) == min(turn + 1, 2) * 50
        assert index.nearest(part[7], 1, None) == [number + 7]
        if turn:
            assert before.nearest(vectors[number - 50 + 7], 1, None) == [number - 50 + 7], "as it was"
    assert len(index.rows) <= 1024
    assert index.nearest(vectors[0], 5000, [0]) == []


def test_only_the_files_asked_for(store: Store) -> None:
    for name in "abc":
        put(store, name, [f"bridge {name} {n}" for n in range(30)])
    query = some_vectors(1)[0]
    found = store.search(query, "bridge b", top_k=50, threshold=-1, files=["a", "c", "gone"])
    assert {passage.chunk.file for passage in found} == {"a", "c"}
    assert store.search(query, "bridge", top_k=5, threshold=-1, files=[]) == []
    assert ask(store, "b", files=["a"]) == []


def test_replacing_and_removing(store: Store, tmp_path: Path) -> None:
    put(store, "a", ["old heron", "old crane"])
    put(store, "b", ["a wren"])
    put(store, "a", ["new robin"], mark="2")
    assert ask(store, "heron crane") == []
    assert ask(store, "robin") == ["new robin"]
    assert store.n_chunks == 2
    store.remove("b")
    store.remove("never there")
    assert ask(store, "wren") == []
    assert store.files() == {"a": IndexedFile("a", "2", 10, 1, None)}
    store.close()
    with open_store(tmp_path / "index") as again:
        assert again.files() == {"a": IndexedFile("a", "2", 10, 1, None)}
        assert ask(again, "robin") == ["new robin"]
        assert again.n_chunks == 1


def test_a_skipped_file_is_remembered(store: Store) -> None:
    put(store, "a.pdf", ["readable"])
    skipped = IndexedFile("a.pdf", "2", 99, 0, "has no text; it may be a scan")
    store.replace(skipped, [], np.empty((0, DIMENSIONS), np.float32))
    assert store.files() == {"a.pdf": skipped}
    assert store.n_chunks == 0
    assert store.search(some_vectors(1)[0], "readable", top_k=3, threshold=-1) == []


TEXTS = [
    "Order the pump XK-4471-B from the yard.",
    "Order the pump XK-4472-B from the yard.",
    "The gauge answers at 192.168.7.4 at night.",
    "The gauge answers at 192.168.4.7 at night.",
    "Ёлка стоит у моста.",
    "La crème brûlée coûte 5 €.",
    "水道橋は六時に開きます。",
    "新しい駅は七時に閉まります。",
    "पुल सुबह खुलता है।",
    "สะพานเปิดหกโมงเช้า",
    "Η γέφυρα ανοίγει στις έξι.",
    "The lanterns are hung out at dusk.",
]


@pytest.mark.parametrize(
    ("query", "number"),
    [
        ("what is XK-4471-B?", 0),
        ("xk4472b", 1),
        ("XK 4471 B", 0),
        ("who is 192.168.7.4", 2),
        ("192.168.4.7?", 3),
        ("елка", 4),
        ("CREME BRULEE", 5),
        ("水道橋", 6),
        ("駅はどこ", 7),
        ("पुल", 8),
        ("สะพาน", 9),
        ("ΓΕΦΥΡΑ", 10),
        ("hanging a lantern", 11),
    ],
)
def test_words_of_any_script_and_part_numbers(store: Store, query: str, number: int) -> None:
    put(store, "a", TEXTS)
    assert ask(store, query)[:1] == [TEXTS[number]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t",
        '"',
        "'; drop table chunks; --",
        "NEAR(",
        "a AND OR NOT (",
        "heron*",
        "text:heron ^heron {heron}",
        "\0",
        "he\0ron",
        "🦆🦆",
        "\ud800",
        "the of and",
        "x" * 100_000,
        "heron " * 20_000,
        " ".join(f"word{n}" for n in range(20_000)),
        "-" * 10_000,
        "_" * 100,
        "𝒽𝑒𝓇𝑜𝓃 ﬁ ß İ",
        "٣٤ ५६",
    ],
)
def test_any_text_is_a_query(store: Store, text: str) -> None:
    put(store, "a", ["a heron", "the crane of the yard", "and"])
    assert len(store.search(some_vectors(1)[0], text, top_k=3, threshold=-1)) == 3


def test_frequent_words_do_not_hide_the_rare_one(store: Store) -> None:
    for file in range(7):
        put(store, f"{file}", [f"the yard has the number n{file}x{n}" for n in range(1000)])
    assert ask(store, "what number has the yard n3x77", top_k=1) == ["the yard has the number n3x77"]
    assert ask(store, "the yard") == []  # each in more chunks than a search visits


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


def check_whole(store: Store) -> None:
    """Check that chunks, vectors and words of each file are of one turn."""
    for name, file in store.files().items():
        found = store.search(np.ones(DIMENSIONS, np.float32), "", top_k=1000, threshold=-1, files=[name])
        texts = sorted(passage.chunk.text for passage in found)
        assert texts == sorted(f"{name} turn{file.fingerprint} at{at}" for at in range(file.n_chunks))
        by_words = ask(store, f"turn{file.fingerprint}", top_k=1000, files=[name])
        assert len(by_words) == file.n_chunks
    assert store.n_chunks == sum(file.n_chunks for file in store.files().values())


@pytest.mark.parametrize("milliseconds", [0, 3, 11, 40, 170, 700])
def test_a_kill_leaves_every_file_old_or_new(tmp_path: Path, milliseconds: int) -> None:
    for more in range(2):  # the second run opens the index of the first
        with start_writer(tmp_path) as writer:
            time.sleep((milliseconds + more) / 1000)
            writer.send_signal(signal.SIGKILL)
        with open_store(tmp_path) as store:
            check_whole(store)
            with sqlite3.connect(tmp_path / "index.sqlite3") as db:
                assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
                db.execute("insert into words(words) values ('integrity-check')")
            db.close()
            put(store, "d", ["one more"])
            assert ask(store, "more") == ["one more"]
            store.remove("d")


class SlowToCommit:
    """A connection with a delay after each commit, to reveal readers that do not wait for the writer."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        cursor = self._db.execute(statement, *values)
        if statement == "commit":
            time.sleep(0.004)
        return cursor


def test_readers_see_whole_files_while_one_writes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    nearest = VectorIndex.nearest

    def slow_nearest(*arguments: Any) -> list[int]:
        time.sleep(0.004)
        return nearest(*arguments)

    monkeypatch.setattr(VectorIndex, "nearest", slow_nearest)
    store._db = SlowToCommit(store._db)  # type: ignore[assignment]
    errors: list[BaseException] = []
    reads = [0] * 4
    ends = threading.Event()

    def write_file(turn: int) -> None:
        texts = [f"turn{turn} common" for _ in range(15)]
        put(store, "a", texts, np.ones((15, DIMENSIONS), np.float32), str(turn))
        put(store, "b", ["other"] * 5, -np.ones((5, DIMENSIONS), np.float32))  # ids are not reused

    def read(reader: int) -> None:
        try:
            while not ends.is_set():
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
    ends.set()
    for reader in readers:
        reader.join()
    assert errors == []
    assert min(reads) > 0


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with start_writer(tmp_path) as writer:
        try:
            with pytest.raises(StoreError, match=r"KNOWLEDGE_INDEX=.* is in use by another process"):
                open_store(tmp_path)
        finally:
            writer.kill()
    with open_store(tmp_path), pytest.raises(StoreError, match="in use"):
        open_store(tmp_path)


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
        left = {"garbage": os.urandom(5000), "cut": whole[: len(whole) // 8], "empty": b""}
        file.write_bytes(left[damage])
    with open_store(tmp_path) as store:
        assert store.files() == {}
        put(store, "a", ["wren"])
        assert ask(store, "wren") == ["wren"]
    assert "a new index is created in" in caplog.text


@pytest.mark.parametrize("lost", ["folder", "file", "replaced"])
def test_a_lost_index_is_an_error_until_the_next_start(tmp_path: Path, lost: str) -> None:
    folder = tmp_path / "index"
    with open_store(folder) as store:
        put(store, "a", ["heron"])
        if lost == "file":
            (folder / "index.sqlite3").unlink()
        else:
            shutil.rmtree(folder)
        if lost == "replaced":
            with open_store(folder) as other:
                put(other, "b", ["wren"])
        with pytest.raises(StoreError, match=r"KNOWLEDGE_INDEX=.*index is gone; restart the server"):
            store.search(some_vectors(1)[0], "heron", top_k=1, threshold=-1)
        with pytest.raises(StoreError, match="is gone"):
            store.files()
        with pytest.raises(StoreError, match="is gone"):
            put(store, "c", ["crane"])
    with open_store(folder) as store:
        assert [*store.files()] == (["b"] if lost == "replaced" else [])
        put(store, "d", ["robin"])
        assert ask(store, "robin") == ["robin"]


def test_damage_found_in_use_is_repaired_at_the_next_start(tmp_path: Path) -> None:
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
    assert ask(store, "heron") == ["heron"]
    store._db.execute("pragma max_page_count = 100000")
    put(store, "a", ["wren"], mark="3")
    assert ask(store, "wren") == ["wren"]


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(
        StoreError, match=r"KNOWLEDGE_INDEX=.*file/x cannot be used: .*set it to a writable folder"
    ):
        open_store(tmp_path / "file" / "x")
    (tmp_path / "index.sqlite3").mkdir()
    with pytest.raises(StoreError, match=r"KNOWLEDGE_INDEX=.* cannot be used"):
        open_store(tmp_path)


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


def test_closed(store: Store) -> None:
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
