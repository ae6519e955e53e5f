"""Synchronizes the index with the documents' folder."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from watchfiles import watch

from app.engine.embedder import Embedder, EmbeddingError, Vectors, normalized
from app.knowledge.chunk import Chunk
from app.knowledge.chunking import embedded_text, split_into_chunks
from app.knowledge.errors import StoreError
from app.knowledge.index.store import IndexedFile, Store
from app.knowledge.reading.document import UnreadableDocument
from app.knowledge.reading.reader import MOST_BYTES, SUFFIXES, DocumentReader

logger = logging.getLogger("tokenstream.knowledge")

# Chunks in embedding while more files are read: enough to fill batches from small files.
_AHEAD = 256
# Seconds between scans without change events: network file systems and some container mounts send none.
_RESCAN_AFTER = 60.0
_REPORT_EVERY = 1.0  # seconds, during indexing: counting all files takes time
_WATCH_TIMEOUT = 5000  # milliseconds


class Observer(Protocol):
    """Receives events of indexing."""

    def on_indexed(self, n_chunks: int, problem: str | None) -> None:
        """A file was indexed, or skipped because of a problem."""

    def on_index(self, n_documents: int, n_chunks: int, n_skipped: int) -> None:
        """The contents of the index have changed."""


@dataclass(frozen=True, slots=True)
class Chunking:
    """Chunk size and overlap in tokens, and a prefix for the embedding of each chunk."""

    max_tokens: int
    overlap: int
    prefix: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A file in the folder."""

    path: Path
    n_bytes: int
    stamp: tuple[int, int, int]  # size, and times of modification and status change in ns


@dataclass(slots=True)
class _Underway:
    """A file whose chunks are in embedding."""

    file: IndexedFile
    chunks: list[Chunk]
    vectors: Future[Vectors]


class Indexer:
    """A thread that scans the folder at start and after every change in it."""

    def __init__(
        self, folder: Path, store: Store, embedder: Embedder, chunking: Chunking, observer: Observer
    ) -> None:
        self._folder = folder
        self._store = store
        self._embedder = embedder
        self._chunking = chunking
        self._observer = observer
        self._reader = DocumentReader()
        self._stamps: dict[str, tuple[int, int, int]] = {}
        self._unnamed: set[Path] = set()  # files whose names are not UTF-8
        self._reported_at = 0.0
        self._ends = threading.Event()
        self.has_scanned = threading.Event()  # set after the first complete scan
        self.problem: str | None = None  # reason why documents are not indexed
        self.waiting: dict[str, int] = {}  # name → size of files that are not indexed yet
        self._thread = threading.Thread(target=self._run, name="indexer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread. The next start indexes the files that are in progress."""
        self._ends.set()
        self._reader.close()
        if self._thread.is_alive():
            self._thread.join()

    # --- the thread

    def _run(self) -> None:
        self._scan()
        self.has_scanned.set()
        while not self._ends.is_set():
            folder = _identity(self._folder)
            try:
                if folder is not None:
                    self._watch(folder)
                elif not self._ends.wait(1.0) and _identity(self._folder) is not None:
                    self._scan()  # the folder exists again
            except BaseException as error:  # for example no free inotify watches, or a panic of watchfiles
                logger.warning(
                    "%s cannot be watched, next scan in %.0f s: %s", self._folder, _RESCAN_AFTER, error
                )
                if not self._ends.wait(_RESCAN_AFTER):
                    self._scan()

    def _watch(self, folder: tuple[int, int]) -> None:
        """Scan after every change, until the folder is replaced."""
        scanned_at = 0.0  # scan immediately: files may have changed before the watch began
        for changes in watch(
            self._folder,
            stop_event=self._ends,
            raise_interrupt=False,
            rust_timeout=_WATCH_TIMEOUT,
            yield_on_timeout=True,
        ):
            if changes or time.monotonic() - scanned_at > _RESCAN_AFTER:
                self._scan()
                scanned_at = time.monotonic()
            if _identity(self._folder) != folder:
                return

    def _scan(self) -> None:
        """Synchronize the index with the folder. After a failure the next scan tries again."""
        try:
            self.problem = None
            self._synchronize()
            self.waiting = {}
        except (StoreError, EmbeddingError, CancelledError) as error:
            self.problem = str(error)
            if not self._ends.is_set():
                logger.error("documents cannot be indexed: %s", error)
        except BaseException as error:  # a defect; indexed documents stay searchable
            self.problem = f"indexing failed: {error}"
            logger.exception("indexing failed; the next change or scan tries again")

    def _synchronize(self) -> None:
        started = time.perf_counter()
        if _identity(self._folder) is None:
            self.problem = f"{self._folder} does not exist; its documents stay indexed"
            logger.warning("%s", self.problem)
            return
        unseen: list[str] = []  # unreadable folders; their documents stay indexed
        known, found = self._store.files(), dict(self._found(unseen))
        for name in known.keys() - found.keys():
            if any(name.startswith(folder) for folder in unseen):
                continue
            self._store.remove(name)
            self._stamps.pop(name, None)
            logger.info("%s was deleted", name)
        todo = {
            name: file
            for name, file in sorted(found.items())
            if name not in known or self._stamps.get(name) != file.stamp
        }
        self.waiting = {name: file.n_bytes for name, file in todo.items() if name not in known}
        n_indexed = self._index(todo, known)
        self._report()
        if n_indexed:
            logger.info("%d files indexed in %.1f s", n_indexed, time.perf_counter() - started)

    def _index(self, todo: dict[str, _Found], known: dict[str, IndexedFile]) -> int:
        """Read and embed the changed files. Returns their number."""
        underway: deque[_Underway] = deque()
        n_ahead = n_indexed = 0
        try:
            for name, found in todo.items():
                if self._ends.is_set():
                    return n_indexed
                fingerprint = _fingerprint(found)
                if name in known and known[name].fingerprint == fingerprint:
                    self._done(name, found)
                    continue
                file = self._read(IndexedFile(name, fingerprint, found.n_bytes, 0, None), found)
                underway.append(file)
                n_ahead += len(file.chunks)
                n_indexed += 1
                while underway and (n_ahead > _AHEAD or underway[0].vectors.done()):
                    n_ahead -= self._keep(underway.popleft(), todo)
            while underway:
                self._keep(underway.popleft(), todo)
        finally:
            for file in underway:
                file.vectors.cancel()
        return n_indexed

    def _read(self, file: IndexedFile, found: _Found) -> _Underway:
        """Read and split a document, and submit its chunks for embedding."""
        chunks: list[Chunk] = []
        chunking = self._chunking
        try:
            chunks = split_into_chunks(
                self._reader.read(found.path),
                file=file.name,
                n_tokens=self._embedder.count,
                max_tokens=chunking.max_tokens,
                overlap=chunking.overlap,
            )
        except UnreadableDocument as error:
            if self._ends.is_set():
                raise EmbeddingError("the server is shutting down") from error
            file = replace(file, problem=str(error))
            logger.warning("%s is skipped: %s", file.name, error)
        tokens = [self._embedder.fit(chunking.prefix + embedded_text(chunk)) for chunk in chunks]
        vectors = self._embedder.submit(tokens, background=True)
        return _Underway(replace(file, n_chunks=len(chunks)), chunks, vectors)

    def _keep(self, underway: _Underway, todo: dict[str, _Found]) -> int:
        """Store a file once its vectors are computed. Returns its number of chunks."""
        while not self._ends.is_set():
            try:
                vectors = underway.vectors.result(timeout=0.5)
            except NotYet:
                continue
            file = underway.file
            self._store.replace(file, underway.chunks, normalized(vectors))
            self._done(file.name, todo[file.name])
            self._observer.on_indexed(file.n_chunks, file.problem)
            if time.monotonic() - self._reported_at > _REPORT_EVERY:
                self._report()
            return file.n_chunks
        raise EmbeddingError("the server is shutting down")

    def _done(self, name: str, found: _Found) -> None:
        self._stamps[name] = found.stamp
        self.waiting.pop(name, None)

    def _report(self) -> None:
        self._reported_at = time.monotonic()
        files = self._store.files().values()
        n_skipped = sum(file.problem is not None for file in files)
        self._observer.on_index(len(files) - n_skipped, self._store.n_chunks, n_skipped)

    def _found(self, unseen: list[str]) -> Iterator[tuple[str, _Found]]:
        """Visible documents in the folder tree. Unreadable folders are appended to ``unseen``."""
        seen: set[str] = set()

        def note(error: OSError) -> None:
            logger.warning("%s cannot be listed: %s", error.filename, error.strerror)
            below = Path(error.filename).relative_to(self._folder).as_posix()
            unseen.append("" if below == "." else f"{below}/")

        for folder, subfolders, names in os.walk(self._folder, onerror=note, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a circular link
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in names:
                path = Path(folder, name)
                if not _is_text(path.as_posix()):
                    if path not in self._unnamed:
                        logger.warning("%r is skipped: its name is not UTF-8", path)
                    self._unnamed.add(path)
                    continue
                if name.startswith((".", "~$")) or path.suffix.lower() not in SUFFIXES:
                    continue
                try:
                    status = path.stat()
                except OSError:
                    continue  # deleted in the meantime, or a broken link
                if not stat.S_ISREG(status.st_mode):
                    continue  # reading a pipe would block
                stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                yield path.relative_to(self._folder).as_posix(), _Found(path, status.st_size, stamp)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Device and inode of a folder; None if it does not exist."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None


def _is_text(name: str) -> bool:
    """Whether a file name is UTF-8: Python maps other bytes to lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fingerprint(found: _Found) -> str:
    """SHA-256 of a file's content, or its stamp if it cannot be read."""
    if found.n_bytes > MOST_BYTES:
        return f"too large {found.stamp}"
    digest = hashlib.sha256()
    try:
        with found.path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError:
        return f"unreadable {found.stamp}"
    return digest.hexdigest()
