"""Reads, splits, embeds and stores the waiting files of one range of sizes."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from app.engine.embedder import Embedder, EmbeddingError, Vectors, normalized
from app.knowledge.backlog import Backlog, WaitingFile
from app.knowledge.chunk import Chunk
from app.knowledge.chunking import embedded_text, split_into_chunks
from app.knowledge.errors import StoreError
from app.knowledge.folder import Folder, FoundFile
from app.knowledge.index.store import IndexedFile, Store
from app.knowledge.reading.document import Document, ReadFailed, TimeLimitExceeded, UnreadableDocument
from app.knowledge.reading.reader import DocumentReader

logger = logging.getLogger("tokenstream.knowledge")

# Chunks in embedding while more are read: enough to fill batches from small files, and few enough that those
# of another lane are embedded within seconds.
_AHEAD = 64
_BATCH = 16  # chunks of a file that are submitted together
_IDLE_AFTER = 60.0  # seconds without work before the reader's process ends


@dataclass(frozen=True, slots=True)
class Chunking:
    """Chunk size and overlap in tokens, and a prefix for the embedding of each chunk."""

    max_tokens: int
    overlap: int
    prefix: str


@dataclass(frozen=True, slots=True)
class Parts:
    """What all lanes share."""

    folder: Folder
    backlog: Backlog
    store: Store
    embedder: Embedder
    chunking: Chunking


@dataclass(slots=True)
class _Underway:
    """A file in progress."""

    waiting: WaitingFile
    fingerprint: str = ""
    stamp: str = ""
    problem: str | None = None
    chunks: list[Chunk] = field(default_factory=list)
    vectors: list[Future[Vectors]] = field(default_factory=list)
    is_split: bool = False  # whether all chunks are submitted

    @property
    def is_embedded(self) -> bool:
        return self.is_split and all(future.done() for future in self.vectors)

    def skip(self, problem: str) -> None:
        """Index it without chunks."""
        for future in self.vectors:
            future.cancel()
        self.problem, self.chunks, self.vectors = problem, [], []


class Lane:
    """A thread that indexes files of similar size. So small files do not wait for large ones."""

    def __init__(
        self,
        parts: Parts,
        sizes: range,
        *,
        file_seconds: float,
        on_indexed: Callable[[IndexedFile], None],
    ) -> None:
        """Create the thread.

        Args:
            parts: Folder, index and embedding model.
            sizes: Sizes of its files in bytes.
            file_seconds: CPU time limit for reading a file.
            on_indexed: Called with each file that was indexed or skipped.
        """
        self.problem: str | None = None  # reason why no file can be indexed until the next scan
        self._parts = parts
        self._sizes = sizes
        self._on_indexed = on_indexed
        self._reader = DocumentReader(time_limit=file_seconds)
        self._underway: deque[_Underway] = deque()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="indexer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread; close the backlog first. The next start indexes the files in progress."""
        self._ends.set()
        self._reader.close()
        if self._thread.is_alive():
            self._thread.join()

    # --- the thread

    def _run(self) -> None:
        backlog = self._parts.backlog
        while not self._ends.is_set():
            n_scans = backlog.n_scans
            try:
                self._work()
                continue
            except (StoreError, EmbeddingError, CancelledError) as error:
                if not self._ends.is_set():
                    logger.error("documents cannot be indexed: %s", error)
                    self.problem = str(error)
            except BaseException as error:  # a defect; indexed documents stay searchable
                logger.exception("indexing failed; the next change or scan tries again")
                self.problem = f"indexing failed: {error}"
            for file in [*self._underway]:
                self._drop(file)
            backlog.wait_for_scan(n_scans)

    def _work(self) -> None:
        """Begin the next file, or finish the first one in progress."""
        waiting = self._parts.backlog.take(self._sizes, 0.0 if self._underway else _IDLE_AFTER)
        if waiting is not None:
            self._begin(waiting)
        elif self._underway:
            self._finish()
        else:
            self._reader.pause()
        while sum(len(file.chunks) for file in self._underway) > _AHEAD:
            self._finish()
        self._finish_embedded()

    def _begin(self, waiting: WaitingFile) -> None:
        """Read and split a file, and submit its chunks for embedding."""
        file = _Underway(waiting)
        self._underway.append(file)
        if not self._is_unchanged(file):
            return
        file.fingerprint, file.stamp = waiting.file.fingerprint(), waiting.file.stamp
        known = waiting.known
        if known is not None and known.problem is None and known.fingerprint == file.fingerprint:
            self._parts.store.restamp(waiting.name, file.stamp)
            self._underway.remove(file)
            self._parts.backlog.done(waiting)
            self.problem = None
            return
        try:
            chunks = self._split(waiting, self._read(waiting))
        except (EmbeddingError, CancelledError):
            raise
        except Exception as error:
            self._skip(file, error)
        else:
            if not self._is_unchanged(file) or not self._submit(file, chunks):
                return
        file.is_split = True

    def _skip(self, file: _Underway, error: Exception) -> None:
        """Skip a file that cannot be read. A defect costs one file."""
        if isinstance(error, UnreadableDocument):
            file.skip(str(error))
        else:
            logger.error("%s cannot be indexed", file.waiting.name, exc_info=error)
            file.skip(f"cannot be indexed: {error}")
        if isinstance(error, ReadFailed):
            file.stamp = ""  # the next scan tries again
        elif isinstance(error, TimeLimitExceeded):
            file.stamp = self._parts.backlog.limited_stamp(file.waiting.file)

    def _read(self, waiting: WaitingFile) -> Document:
        if waiting.file.problem is not None:
            raise UnreadableDocument(waiting.file.problem)
        try:
            return self._reader.read(waiting.file.path)
        except UnreadableDocument:
            if self._ends.is_set():
                raise _closing() from None
            raise

    def _split(self, waiting: WaitingFile, document: Document) -> Iterator[Chunk]:
        return split_into_chunks(
            document,
            file=waiting.name,
            n_tokens=self._parts.embedder.count,
            max_tokens=self._parts.chunking.max_tokens,
            overlap=self._parts.chunking.overlap,
        )

    def _submit(self, file: _Underway, chunks: Iterator[Chunk]) -> bool:
        """Embed chunks in batches, a few ahead. Returns False if the file changes meanwhile."""
        while self._submit_batch(file, chunks):
            if not self._parts.backlog.is_current(file.waiting):
                self._drop(file)
                return False
            if len(file.vectors) > _AHEAD // _BATCH:
                self._result(file.vectors[-1 - _AHEAD // _BATCH])
                self._finish_embedded()
        return True

    def _submit_batch(self, file: _Underway, chunks: Iterator[Chunk]) -> bool:
        """Submit the next chunks. Returns False after the last one, or if they cannot be split."""
        embedder, prefix = self._parts.embedder, self._parts.chunking.prefix
        try:
            batch = list(islice(chunks, _BATCH))
            if not batch:
                return False
            tokens = [embedder.fit(prefix + embedded_text(chunk)) for chunk in batch]
            file.vectors.append(embedder.submit(tokens, background=True))
            file.chunks += batch
        except EmbeddingError:
            raise
        except Exception as error:
            self._skip(file, error)
            return False
        return True

    def _finish_embedded(self) -> None:
        while self._underway and self._underway[0].is_embedded:
            self._finish()

    def _finish(self) -> None:
        """Store the first file in progress once its vectors are computed."""
        file = self._underway[0]
        for future in file.vectors:
            self._result(future)
        if not self._parts.backlog.is_current(file.waiting):
            self._drop(file)
            return
        try:
            indexed = self._store(file)
        except ValueError as error:  # a vector is not finite
            file.skip(f"cannot be embedded: {error}")
            indexed = self._store(file)
        self._underway.popleft()
        if not self._parts.backlog.done(file.waiting):  # deleted since
            self._parts.store.remove(indexed.name)
        self.problem = None
        known = file.waiting.known
        if indexed.problem is not None and (known is None or known.problem != indexed.problem):
            logger.warning("%s is skipped: %s", indexed.name, indexed.problem)
        self._on_indexed(indexed)

    def _store(self, file: _Underway) -> IndexedFile:
        waiting = file.waiting
        indexed = IndexedFile(
            name=waiting.name,
            fingerprint=file.fingerprint,
            n_bytes=waiting.file.n_bytes,
            n_chunks=len(file.chunks),
            problem=file.problem,
            stamp=file.stamp,
        )
        vectors = [future.result() for future in file.vectors] or [np.empty((0, 1), np.float32)]
        self._parts.store.replace(indexed, file.chunks, normalized(np.concatenate(vectors)))
        return indexed

    def _result(self, vectors: Future[Vectors]) -> None:
        """Wait for vectors."""
        while not self._ends.is_set():
            with suppress(NotYet):
                vectors.result(timeout=0.5)
                return
        raise _closing()

    def _is_unchanged(self, file: _Underway) -> bool:
        """Whether the file on disk is the one that was taken. If not, it waits until it rests."""
        now = self._parts.folder.file(file.waiting.name)
        if now == file.waiting.file:
            return True
        self._drop(file, now)
        return False

    def _drop(self, file: _Underway, now: FoundFile | None = None) -> None:
        """Give a file back. ``now``: its changed state."""
        self._underway.remove(file)
        for future in file.vectors:
            future.cancel()
        self._parts.backlog.give_back(file.waiting, now)


def _closing() -> EmbeddingError:
    return EmbeddingError("the server is shutting down")
