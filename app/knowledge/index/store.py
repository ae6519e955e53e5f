"""The index on disk: chunks, their vectors and their words, and the search over both.

One SQLite file holds all data, so a document's chunks change in one transaction. A search uses two indexes.
Vectors in memory, one byte per component, yield candidates; their exact cosines are then computed. SQLite's
FTS5 ranks chunks by BM25.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from app.knowledge.chunk import Chunk, Passage
from app.knowledge.errors import StoreError
from app.knowledge.index import tables
from app.knowledge.index.file import IndexFile
from app.knowledge.index.nearest import VectorIndex, pack
from app.machine.threads import full_pool

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FORMAT = "2"  # version of tables and words; incremented with every change of either
_RANKED = 40  # minimum chunks that each of the two rankings contributes to the fusion
_MARGIN = 2  # candidates by packed vectors per requested chunk
_WORDS_SHARE = 0.3  # weight of BM25 in the score; chosen by `python -m bench.knowledge --only recall`
_LOGGED = 1000  # maximum chunks in SQLite's write-ahead log before a checkpoint


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A document in the index.

    Attributes:
        name: Path relative to the documents' folder, with forward slashes.
        fingerprint: Digest of its content.
        n_bytes: File size.
        n_chunks: Number of its chunks.
        problem: Reason why it was skipped, or None.
        stamp: Size and times of the file when it was read.
    """

    name: str
    fingerprint: str
    n_bytes: int
    n_chunks: int
    problem: str | None
    stamp: str = ""


class Store:
    """The index of a folder of documents. One thread writes at a time; any number of threads search."""

    def __init__(self, folder: Path, *, dimensions: int, identity: str) -> None:
        """Open the index. If it is missing, damaged or of another identity, a new index is created.

        Args:
            folder: Folder of the index; created if missing.
            dimensions: Components per vector.
            identity: Equal for comparable vectors.

        Raises:
            StoreError: The folder cannot be written, or another process uses it.
        """
        self._dimensions = dimensions
        self._writing = threading.Lock()  # held from the first change to the commit
        self._switching = threading.Lock()  # held while both the file and the vectors in memory change
        self._idle_readers: list[sqlite3.Connection] = []
        self._closed = False
        self._scanning = full_pool(2, "scan")
        self._in_log = 0  # chunks
        meta = {"format": _FORMAT, "dimensions": str(dimensions), "identity": identity}
        self._file = IndexFile(folder, meta)
        try:
            self._db = self._file.open(self._load)
        except BaseException:
            self._file.release()
            raise

    def files(self) -> dict[str, IndexedFile]:
        """All documents of the index by name, including skipped ones.

        Raises:
            StoreError: The index is damaged, gone or closed.
        """
        with self._file.explained(), self._reading() as (db, _):
            rows = db.execute(
                "select name, fingerprint, n_bytes, n_chunks, problem, stamp from files order by name"
            )
            return {row[0]: IndexedFile(*row) for row in rows}

    @property
    def n_chunks(self) -> int:
        """Number of searchable chunks."""
        return len(self._vectors)

    def replace(self, file: IndexedFile, chunks: Sequence[Chunk], vectors: NDArray[np.float32]) -> None:
        """Replace a document's chunks in one transaction.

        Args:
            file: The document. With a problem it has no chunks and is recorded as skipped.
            chunks: All chunks of the document.
            vectors: Float array (chunks, dimensions).

        Raises:
            StoreError: The disk is full, or the index is damaged, gone or closed; nothing has changed.
            ValueError: File, chunks and vectors do not match.
        """
        vectors = np.asarray(vectors, np.float32).reshape(len(chunks), self._dimensions)
        if file.n_chunks != len(chunks) or any(chunk.file != file.name for chunk in chunks):
            raise ValueError(
                f"{file.name}: n_chunks is {file.n_chunks}, but there are {len(chunks)} chunks of it"
            )
        if not np.isfinite(vectors).all():
            raise ValueError(f"{file.name}: a vector is not finite")
        vectors = _unit(vectors)
        packed = pack(vectors)

        def change(db: sqlite3.Connection) -> VectorIndex:
            remaining = self._delete(db, file.name)
            (first,) = db.execute("select coalesce(max(first_chunk + n_chunks), 1) from files").fetchone()
            values = (file.name, file.fingerprint, file.n_bytes, file.n_chunks, file.problem, file.stamp)
            file_id = db.execute(
                "insert into files(name, fingerprint, n_bytes, n_chunks, problem, stamp, first_chunk, packed)"
                " values (?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, first, packed.tobytes()),
            ).lastrowid
            assert file_id is not None
            tables.insert_chunks(db, first, file_id, chunks, vectors)
            return remaining.with_file(file_id, first, packed)

        self._write(change, len(chunks))

    def restamp(self, name: str, stamp: str) -> None:
        """Store another stamp of a document with the same content.

        Raises:
            StoreError: The disk is full, or the index is damaged, gone or closed; nothing has changed.
        """

        def change(db: sqlite3.Connection) -> VectorIndex:
            db.execute("update files set stamp = ? where name = ?", (stamp, name))
            return self._vectors

        self._write(change)

    def remove(self, name: str) -> None:
        """Remove a document, if it exists.

        Raises:
            StoreError: The disk is full, or the index is damaged, gone or closed; nothing has changed.
        """
        self._write(lambda db: self._delete(db, name))

    def search(
        self,
        vector: NDArray[np.float32],
        text: str,
        *,
        top_k: int,
        threshold: float,
        files: Collection[str] | None = None,
    ) -> list[Passage]:
        """Find the chunks nearest to a query by vector and by words, best first.

        Args:
            vector: Vector of the query, (dimensions,).
            text: The query; any text is valid.
            top_k: Maximum number of passages.
            threshold: Minimum cosine, also for chunks found by words.
            files: Names of the documents to search. None: all.

        Raises:
            StoreError: The index is damaged, gone or closed.
            ValueError: The vector has another size.
        """
        query = _unit(np.asarray(vector, np.float32).reshape(1, self._dimensions))[0]
        depth = max(_RANKED, top_k)
        with self._file.explained(), self._reading() as (db, index):
            file_ids = None if files is None else tables.file_ids(db, files)
            # Both searches release the interpreter lock and run in parallel.
            nearest = self._scan(index, query, _MARGIN * depth, file_ids)
            by_words = tables.ranked_by_words(db, text, depth, file_ids)
            cosines = tables.cosines(db, [*{*nearest.result(), *by_words}], query)
            by_vector = sorted(nearest.result(), key=lambda chunk: (-cosines[chunk], chunk))[:depth]
            scores = _fused([*by_vector, *by_words], cosines, by_words)
            best = sorted(scores, key=lambda chunk: (-scores[chunk], -cosines[chunk], chunk))
            best = [chunk for chunk in best if cosines[chunk] >= threshold][: max(top_k, 0)]
            found = tables.read_chunks(db, best)
        return [Passage(found[chunk], cosines[chunk], scores[chunk]) for chunk in best]

    def close(self) -> None:
        """Release the folder. Running searches finish or raise StoreError; later calls raise it."""
        with self._writing, self._switching:
            if self._closed:
                return
            self._closed = True
            self._scanning.shutdown(wait=False)
            for connection in (*self._idle_readers, self._db):
                connection.close()
            self._idle_readers.clear()
            self._file.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scan(
        self, index: VectorIndex, query: NDArray[np.float32], n: int, files: Collection[int] | None
    ) -> Future[list[int]]:
        try:
            return self._scanning.submit(index.nearest, query, n, files)
        except RuntimeError:
            raise StoreError("the index is closed") from None

    def _load(self, db: sqlite3.Connection) -> None:
        rows = db.execute("select id, first_chunk, n_chunks, packed from files order by first_chunk")
        self._vectors = VectorIndex.of_files(self._dimensions, rows)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the index is closed")
        self._file.check()

    @contextmanager
    def _reading(self) -> Iterator[tuple[sqlite3.Connection, VectorIndex]]:
        """A consistent snapshot of the file and the vectors in memory."""
        with self._switching:
            self._check_open()
            db = self._idle_readers.pop() if self._idle_readers else self._file.connect()
            try:
                db.execute("begin")
                db.execute("select 1 from meta").fetchone()  # the first read fixes the snapshot
            except BaseException:
                db.close()
                raise
            index = self._vectors
        try:
            yield db, index
            db.execute("rollback")
        except BaseException:
            db.close()
            raise
        with self._switching:
            if self._closed:
                db.close()
            else:
                self._idle_readers.append(db)

    def _write(self, change: Callable[[sqlite3.Connection], VectorIndex], n_chunks: int = 0) -> None:
        with self._writing, self._file.explained():
            self._check_open()
            with _transaction(self._db, self._switching) as commit:
                index = change(self._db)
                tables.count_common_words(self._db, len(index))
                with commit:
                    self._db.execute("commit")
                    self._vectors = index
            self._in_log += n_chunks
            if self._in_log > _LOGGED:  # outside the commit, which blocks searches
                self._db.execute("pragma wal_checkpoint(passive)").fetchall()
                self._in_log = 0

    def _delete(self, db: sqlite3.Connection, name: str) -> VectorIndex:
        file = tables.delete_file(db, name)
        return self._vectors if file is None else self._vectors.without_file(file)


@contextmanager
def _transaction(
    db: sqlite3.Connection, switching: threading.Lock
) -> Iterator[AbstractContextManager[object]]:
    db.execute("begin immediate")
    try:
        yield switching
    except BaseException:
        if db.in_transaction:
            db.execute("rollback")
        raise


def _fused(found: Sequence[int], cosines: Mapping[int, float], bm25: Mapping[int, float]) -> dict[int, float]:
    """Scores: cosine plus a share of BM25, scaled to 1 for the best chunk by words.

    Source: Bruch, Gai & Ingber 2023, "An analysis of fusion functions for hybrid retrieval". Unlike a fusion
    of ranks, a sum of scores keeps the differences between scores.
    """
    most = max(bm25.values(), default=1.0)
    return {chunk: cosines[chunk] + _WORDS_SHARE * bm25.get(chunk, 0.0) / most for chunk in found}


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit
