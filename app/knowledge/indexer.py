"""Synchronizes the index with the documents' folder.

A thread scans the folder and fills the backlog. Lanes take files from it, each those of a range of sizes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping
from typing import Protocol

from app.engine.embedder import Embedder
from app.knowledge.backlog import Backlog, WaitingFile
from app.knowledge.errors import StoreError
from app.knowledge.folder import Folder
from app.knowledge.index.store import IndexedFile, Store
from app.knowledge.lane import Chunking, Lane, Parts
from app.knowledge.watcher import Watcher

logger = logging.getLogger("tokenstream.knowledge")

_SMALL, _LARGE = 256 << 10, 4 << 20  # bytes; files up to each, and larger ones, have a lane
_REPORT_EVERY = 1.0  # seconds, during indexing: counting all files takes time


class Observer(Protocol):
    """Receives events of indexing."""

    def on_indexed(self, n_chunks: int, problem: str | None) -> None:
        """A file was indexed, or skipped because of a problem."""

    def on_index(self, n_documents: int, n_chunks: int, n_skipped: int) -> None:
        """The contents of the index have changed."""


class Indexer:
    """Threads that index the folder at start and after every change in it."""

    def __init__(
        self,
        folder: Folder,
        store: Store,
        embedder: Embedder,
        chunking: Chunking,
        observer: Observer,
        *,
        file_seconds: float,
    ) -> None:
        """``file_seconds``: CPU time limit for reading a file."""
        self._folder = folder
        self._store = store
        self._observer = observer
        sizes = [range(_SMALL), range(_SMALL, _LARGE), range(_LARGE, 1 << 62)]
        self._backlog = Backlog(sizes, file_seconds)
        self._scan_problem: str | None = None
        self._reporting = threading.Lock()
        self._reported_at = self._began_at = 0.0
        self._n_indexed = 0  # since the backlog was empty
        parts = Parts(folder, self._backlog, store, embedder, chunking)
        self._lanes = [
            Lane(parts, one, file_seconds=file_seconds, on_indexed=self._on_indexed) for one in sizes
        ]
        self._watcher = Watcher(folder, self._scan)

    def start(self) -> None:
        self._watcher.start()
        for lane in self._lanes:
            lane.start()

    def close(self) -> None:
        """End the threads. The next start indexes the files that are in progress."""
        self._backlog.close()
        self._watcher.close()
        for lane in self._lanes:
            lane.close()

    def waiting(self) -> Mapping[str, WaitingFile]:
        """New and changed files by name."""
        return self._backlog.files()

    @property
    def n_waiting(self) -> int:
        return len(self._backlog)

    def count_waiting(self, names: Collection[str]) -> int:
        """Number of new and changed files among ``names``."""
        return self._backlog.count(names)

    @property
    def problem(self) -> str | None:
        """Reason why documents are not indexed. It remains until a scan or a file succeeds."""
        if self._scan_problem is not None or not len(self._backlog):
            return self._scan_problem
        return next((lane.problem for lane in self._lanes if lane.problem is not None), None)

    @property
    def has_scanned(self) -> bool:
        """Whether the first scan has ended."""
        return self._backlog.n_scans > 0

    def wait_until_indexed(self, seconds: float) -> bool:
        """Wait until no file waits. Returns False on timeout."""
        return self._backlog.wait_until_empty(seconds)

    def _scan(self) -> None:
        """Compare the folder with the index. After a failure the next scan tries again."""
        try:
            self._scan_problem = self._compare()
        except StoreError as error:
            self._scan_problem = str(error)
            logger.error("documents cannot be indexed: %s", error)
        except BaseException as error:  # a defect; indexed documents stay searchable
            self._scan_problem = f"indexing failed: {error}"
            logger.exception("indexing failed; the next change or scan tries again")
        finally:
            self._backlog.on_scanned()

    def _compare(self) -> str | None:
        """Returns the reason why the folder cannot be compared."""
        if self._folder.identity is None:
            problem = f"{self._folder.path} does not exist; its documents stay indexed"
            logger.warning("%s", problem)
            return problem
        unseen: list[str] = []  # unreadable folders; their documents stay indexed
        found = dict(self._folder.files(unseen))
        self._backlog.update(found, self._store.files)
        for name in self._store.files().keys() - found.keys():
            if not any(name.startswith(folder) for folder in unseen):
                self._store.remove(name)
                logger.info("%s was deleted", name)
        with self._reporting:
            self._report()
        return None

    def _on_indexed(self, file: IndexedFile) -> None:
        self._observer.on_indexed(file.n_chunks, file.problem)
        with self._reporting:
            now = time.monotonic()
            if not self._n_indexed:
                self._began_at = now
            self._n_indexed += 1
            is_last = not len(self._backlog)
            if is_last or now - self._reported_at > _REPORT_EVERY:
                self._report()
            if is_last:
                logger.info("%d files indexed in %.1f s", self._n_indexed, now - self._began_at)
                self._n_indexed = 0

    def _report(self) -> None:
        self._reported_at = time.monotonic()
        files = self._store.files().values()
        n_skipped = sum(file.problem is not None for file in files)
        self._observer.on_index(len(files) - n_skipped, self._store.n_chunks, n_skipped)
