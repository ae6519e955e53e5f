"""Keeps the index as the documents are: reads what is new or changed, forgets what is gone."""

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

# Chunks that are being embedded while further files are read: enough to fill batches from small files.
_AHEAD = 256
# Seconds after which the folder is looked through although nothing was noticed: network file systems and
# some container mounts notify nobody.
_LOOK_AGAIN_AFTER = 60.0
_TELL_EVERY = 1.0  # second, while many files are indexed: to count them takes longer the more there are
_NOTICE_WITHIN = 5000  # milliseconds; of a wait that nothing ends


class Observer(Protocol):
    """Who is told what was indexed."""

    def on_indexed(self, n_chunks: int, problem: str | None) -> None:
        """A file was indexed, or skipped for a problem."""

    def on_index(self, n_documents: int, n_chunks: int, n_skipped: int) -> None:
        """What the index holds has changed."""


@dataclass(frozen=True, slots=True)
class Chunking:
    """How documents become passages: the most tokens, the repeated ones, and what stands before each."""

    max_tokens: int
    overlap: int
    prefix: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A file of the folder."""

    path: Path
    n_bytes: int
    stamp: tuple[int, int, int]  # changes with the file


@dataclass(slots=True)
class _Underway:
    """A file whose chunks are being embedded."""

    file: IndexedFile
    chunks: list[Chunk]
    vectors: Future[Vectors]


class Indexer:
    """A thread that looks through the folder at its start and whenever something in it changes."""

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
        self._unnamed: set[Path] = set()  # files whose names cannot be told
        self._told_at = 0.0
        self._ends = threading.Event()
        self.has_looked = threading.Event()  # through the whole folder, once
        self.problem: str | None = None  # why documents wait, where something is in the way
        self.waiting: dict[str, int] = {}  # names of files that are not indexed yet, and their sizes
        self._thread = threading.Thread(target=self._run, name="indexer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; what it reads now is read at the next start."""
        self._ends.set()
        self._reader.close()
        if self._thread.is_alive():
            self._thread.join()

    # --- the thread

    def _run(self) -> None:
        self._look()
        self.has_looked.set()
        while not self._ends.is_set():
            folder = _identity(self._folder)
            try:
                if folder is not None:
                    self._watch(folder)
                elif not self._ends.wait(1.0) and _identity(self._folder) is not None:
                    self._look()  # it has come back
            except (OSError, RuntimeError) as error:  # such as: no inotify watches left
                logger.warning(
                    "changes in %s are noticed within %.0f s: %s", self._folder, _LOOK_AGAIN_AFTER, error
                )
                if not self._ends.wait(_LOOK_AGAIN_AFTER):
                    self._look()

    def _watch(self, folder: tuple[int, int]) -> None:
        """Look whenever something changes, as long as the folder is the same."""
        looked_at = 0.0  # once more at first: what changed before the watch began
        for changes in watch(
            self._folder,
            stop_event=self._ends,
            raise_interrupt=False,
            rust_timeout=_NOTICE_WITHIN,
            yield_on_timeout=True,
        ):
            if changes or time.monotonic() - looked_at > _LOOK_AGAIN_AFTER:
                self._look()
                looked_at = time.monotonic()
            if _identity(self._folder) != folder:
                return

    def _look(self) -> None:
        """Bring the index to what the folder holds; what cannot be done now is tried at the next look."""
        try:
            self.problem = None
            self._synchronize()
            self.waiting = {}
        except (StoreError, EmbeddingError, CancelledError) as error:
            self.problem = str(error)
            if not self._ends.is_set():
                logger.error("the documents cannot be indexed now, what is indexed stays: %s", error)
        except Exception as error:  # a fault of ours; the documents that are indexed are still served
            self.problem = f"indexing failed: {error}"
            logger.exception("indexing failed; it is tried again at the next change")

    def _synchronize(self) -> None:
        """Bring the index to what the folder holds."""
        started = time.perf_counter()
        if _identity(self._folder) is None:
            self.problem = f"{self._folder} is not there; its documents are kept as they were indexed"
            logger.warning("%s", self.problem)
            return
        if self._store.mend():
            logger.warning("the index was lost or damaged: the documents are indexed again")
        unseen: list[str] = []  # folders that cannot be looked through: their documents are not gone
        known, found = self._store.files(), dict(self._scan(unseen))
        for name in known.keys() - found.keys():
            if any(name.startswith(folder) for folder in unseen):
                continue
            self._store.remove(name)
            self._stamps.pop(name, None)
            logger.info("%s is gone", name)
        todo = {
            name: file
            for name, file in sorted(found.items())
            if name not in known or self._stamps.get(name) != file.stamp
        }
        self.waiting = {name: file.n_bytes for name, file in todo.items() if name not in known}
        n_indexed = self._index(todo, known)
        self._tell()
        if n_indexed:
            logger.info("%d files indexed in %.1f s", n_indexed, time.perf_counter() - started)

    def _index(self, todo: dict[str, _Found], known: dict[str, IndexedFile]) -> int:
        """Read and embed the files that have changed; return how many."""
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
        """Read and split a document, and begin to embed it."""
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
                raise EmbeddingError("the server ends") from error
            file = replace(file, problem=str(error))
            logger.warning("%s is skipped: %s", file.name, error)
        tokens = [self._embedder.fit(chunking.prefix + embedded_text(chunk)) for chunk in chunks]
        vectors = self._embedder.submit(tokens, background=True)
        return _Underway(replace(file, n_chunks=len(chunks)), chunks, vectors)

    def _keep(self, underway: _Underway, todo: dict[str, _Found]) -> int:
        """Store a file when its vectors are there; return how many chunks it has."""
        while not self._ends.is_set():
            try:
                vectors = underway.vectors.result(timeout=0.5)
            except NotYet:
                continue
            file = underway.file
            self._store.replace(file, underway.chunks, normalized(vectors))
            self._done(file.name, todo[file.name])
            self._observer.on_indexed(file.n_chunks, file.problem)
            if time.monotonic() - self._told_at > _TELL_EVERY:
                self._tell()
            return file.n_chunks
        raise EmbeddingError("the server ends")

    def _done(self, name: str, found: _Found) -> None:
        self._stamps[name] = found.stamp
        self.waiting.pop(name, None)

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        files = self._store.files().values()
        n_skipped = sum(file.problem is not None for file in files)
        self._observer.on_index(len(files) - n_skipped, self._store.n_chunks, n_skipped)

    def _scan(self, unseen: list[str]) -> Iterator[tuple[str, _Found]]:
        """The documents in the folder and below it, but hidden ones; ``unseen`` gets folders that fail."""
        seen: set[str] = set()

        def note(error: OSError) -> None:
            logger.warning("%s cannot be looked through: %s", error.filename, error.strerror)
            below = Path(error.filename).relative_to(self._folder).as_posix()
            unseen.append("" if below == "." else f"{below}/")

        for folder, subfolders, names in os.walk(self._folder, onerror=note, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link leads in a circle
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
                    continue  # it has vanished since, or is a link to nothing
                if not stat.S_ISREG(status.st_mode):
                    continue  # a pipe would never end
                stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                yield path.relative_to(self._folder).as_posix(), _Found(path, status.st_size, stamp)


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from one that took its place; None where there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None


def _is_text(name: str) -> bool:
    """Whether a name is text: bytes that are none become lone surrogates in Python."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fingerprint(found: _Found) -> str:
    """What changes with a file's content; of one that cannot be read, with its rights and its size."""
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
