"""The files that wait to be indexed."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from app.knowledge.folder import FoundFile
from app.knowledge.index.store import IndexedFile

# Seconds without a change before a file is read. A file that is still being written would be a fragment.
_RESTS_AFTER = 1.0


@dataclass(frozen=True, slots=True)
class WaitingFile:
    """A new or changed file.

    Attributes:
        name: Its name in the index.
        file: Its present state.
        known: The version in the index, or None.
        since: Time of its first change that is not indexed, in seconds since 1970.
        rests_at: Earliest time of reading, by ``time.monotonic``.
        n_returned: How often it was taken without being indexed.
    """

    name: str
    file: FoundFile
    known: IndexedFile | None
    since: float
    rests_at: float
    n_returned: int = 0


class _Queue:
    """The waiting files of a range of sizes. Entries of files that have changed since are stale."""

    def __init__(self, sizes: range) -> None:
        self.sizes = sizes
        self.resting: list[tuple[tuple[int, bool, int, str], int, WaitingFile]] = []  # a heap by order
        self.changing: list[tuple[float, int, WaitingFile]] = []  # a heap by time of rest


class Backlog:
    """New and changed files, compared by scans and taken by lanes. Thread-safe.

    Counting takes no lock: the event loop counts while a scan compares many files.
    """

    def __init__(self, sizes: Sequence[range], file_seconds: float) -> None:
        """Create an empty backlog.

        Args:
            sizes: The range of file sizes of each lane, in bytes. They contain all sizes.
            file_seconds: CPU time limit for reading a file. With another limit a skipped file is read again.
        """
        self._file_seconds = file_seconds
        self._files: dict[str, WaitingFile] = {}
        self._taken: set[str] = set()
        self._done: dict[str, FoundFile] | None = None  # indexed during a comparison
        self._queues = {one: _Queue(one) for one in sizes}
        self._n_queued = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self.n_scans = 0  # since the start, including failed ones

    def __len__(self) -> int:
        """Number of waiting files, including those in progress."""
        return len(self._files)

    def count(self, names: Collection[str]) -> int:
        """Number of waiting files among ``names``."""
        return sum(name in self._files for name in set(names))

    def files(self) -> dict[str, WaitingFile]:
        """All waiting files by name, including those in progress."""
        with self._changed:
            return dict(self._files)

    def limited_stamp(self, file: FoundFile) -> str:
        """The stamp of a file that was skipped because of the time limit."""
        return f"{file.stamp} limit {self._file_seconds:g}"

    def update(
        self, found: Mapping[str, FoundFile], indexed: Callable[[], Mapping[str, IndexedFile]]
    ) -> None:
        """Compare all files of the folder with the index.

        Args:
            found: The files.
            indexed: Reads the index.
        """
        with self._changed:
            self._done = {}
        known = indexed()  # outside the lock: it reads the disk
        with self._changed:
            done, self._done = self._done, None
            files = {}
            for name, file in found.items():
                if name in done:  # whether before or after it was read from the index is unknown
                    if done[name] != file:
                        files[name] = self._waiting(name, file, None)
                elif name not in known or not self._is_indexed(known[name], file):
                    files[name] = self._waiting(name, file, known.get(name))
            self._files = files
            self._changed.notify_all()

    def on_scanned(self) -> None:
        """A scan has ended; lanes that failed try again."""
        with self._changed:
            self.n_scans += 1
            self._changed.notify_all()

    def take(self, sizes: range, timeout: float) -> WaitingFile | None:
        """Wait for a file that rests.

        Args:
            sizes: One of the ranges of sizes.
            timeout: Maximum seconds.

        Returns:
            A file that no other lane gets until it is given back or done. None: timeout, or closed.
        """
        end = time.monotonic() + timeout
        queue = self._queues[sizes]
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                while queue.changing and queue.changing[0][0] <= now:
                    _, number, waiting = heapq.heappop(queue.changing)
                    heapq.heappush(queue.resting, (_order(waiting), number, waiting))
                while queue.resting:
                    *_, first = heapq.heappop(queue.resting)
                    # A file that is in progress is queued again when it is given back or done.
                    if self._files.get(first.name) is first and first.name not in self._taken:
                        self._taken.add(first.name)
                        return first
                if now >= end:
                    return None
                rests_at = queue.changing[0][0] if queue.changing else end
                self._changed.wait(min(end, rests_at) - now)
            return None

    def is_current(self, waiting: WaitingFile) -> bool:
        """Whether no scan has found a change since the file was taken."""
        with self._changed:
            return self._files.get(waiting.name) is waiting

    def give_back(self, waiting: WaitingFile, file: FoundFile | None = None) -> None:
        """The taken file still waits. ``file``: its changed state."""
        with self._changed:
            self._taken.discard(waiting.name)
            current = self._files.get(waiting.name)
            if current is waiting:
                current = self._files[waiting.name] = replace(
                    waiting,
                    file=file or waiting.file,
                    rests_at=time.monotonic() + _RESTS_AFTER,
                    n_returned=waiting.n_returned + 1,
                )
            if current is not None:
                self._queue(current)
            self._changed.notify_all()

    def done(self, waiting: WaitingFile) -> bool:
        """The taken version is in the index. Returns False if the file no longer exists."""
        with self._changed:
            self._taken.discard(waiting.name)
            if self._done is not None:
                self._done[waiting.name] = waiting.file
            current = self._files.get(waiting.name)
            if current is waiting:
                del self._files[waiting.name]
            elif current is not None:
                self._queue(current)
            self._changed.notify_all()
            return current is not None

    def wait_until_empty(self, seconds: float) -> bool:
        """Wait until a scan has ended and no file waits. Returns False on timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: self.n_scans > 0 and not self._files, seconds)

    def wait_for_scan(self, n_scans: int) -> None:
        """Wait until there were more than ``n_scans`` scans, or the backlog is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.n_scans > n_scans or self._is_closed)

    def close(self) -> None:
        """End all waiting calls."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _is_indexed(self, known: IndexedFile, file: FoundFile) -> bool:
        return known.stamp in (file.stamp, self.limited_stamp(file))

    def _queue(self, waiting: WaitingFile) -> None:
        queue = next(one for one in self._queues.values() if waiting.file.n_bytes in one.sizes)
        self._n_queued += 1  # entries of a heap must differ before their files are compared
        heapq.heappush(queue.changing, (waiting.rests_at, self._n_queued, waiting))

    def _waiting(self, name: str, file: FoundFile, known: IndexedFile | None) -> WaitingFile:
        old = self._files.get(name)
        if old is not None and old.file == file:
            return old
        # Clocks of file systems may differ, so a recent time only delays reading.
        rests = old is None and time.time() - file.changed_at > _RESTS_AFTER
        rests_at = time.monotonic() + (0.0 if rests else _RESTS_AFTER)
        if old is None:
            waiting = WaitingFile(name, file, known, time.time(), rests_at)
        else:
            waiting = replace(old, file=file, known=known, rests_at=rests_at)
        self._queue(waiting)
        return waiting


def _order(waiting: WaitingFile) -> tuple[int, bool, int, str]:
    """New files before changed ones, then the smallest. A file that fails comes last."""
    return waiting.n_returned, waiting.known is not None, waiting.file.n_bytes, waiting.name
