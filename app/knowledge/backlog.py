"""The files that wait to be indexed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
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


class Backlog:
    """New and changed files, compared by scans and taken by lanes. Thread-safe."""

    def __init__(self) -> None:
        self._files: dict[str, WaitingFile] = {}
        self._taken: set[str] = set()
        self._changed = threading.Condition()
        self._is_closed = False
        self.n_scans = 0  # since the start, including failed ones

    def files(self) -> dict[str, WaitingFile]:
        """All waiting files by name, including those in progress."""
        with self._changed:
            return dict(self._files)

    def update(
        self, found: Mapping[str, FoundFile], indexed: Callable[[], Mapping[str, IndexedFile]]
    ) -> None:
        """Compare all files of the folder with the index.

        Args:
            found: The files.
            indexed: Reads the index. Called while no lane can report a file as done.
        """
        with self._changed:
            known = indexed()
            self._files = {
                name: self._waiting(name, file, known.get(name))
                for name, file in found.items()
                if name not in known or known[name].stamp != file.stamp
            }
            self._changed.notify_all()

    def on_scanned(self) -> None:
        """A scan has ended; lanes that failed try again."""
        with self._changed:
            self.n_scans += 1
            self._changed.notify_all()

    def take(self, sizes: range, timeout: float) -> WaitingFile | None:
        """Wait for a file that rests.

        Args:
            sizes: Sizes of the files to take.
            timeout: Maximum seconds.

        Returns:
            A file that no other lane gets until it is given back or done. None: timeout, or closed.
        """
        end = time.monotonic() + timeout
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                free = [
                    waiting
                    for waiting in self._files.values()
                    if waiting.name not in self._taken and waiting.file.n_bytes in sizes
                ]
                resting = [waiting for waiting in free if waiting.rests_at <= now]
                if resting:
                    first = min(resting, key=_order)
                    self._taken.add(first.name)
                    return first
                if now >= end:
                    return None
                self._changed.wait(min([end, *(waiting.rests_at for waiting in free)]) - now)
            return None

    def is_current(self, waiting: WaitingFile) -> bool:
        """Whether no scan has found a change since the file was taken."""
        with self._changed:
            return self._files.get(waiting.name) is waiting

    def give_back(self, waiting: WaitingFile, file: FoundFile | None = None) -> None:
        """The taken file still waits. ``file``: its changed state."""
        with self._changed:
            self._taken.discard(waiting.name)
            if self._files.get(waiting.name) is waiting:
                self._files[waiting.name] = replace(
                    waiting,
                    file=file or waiting.file,
                    rests_at=time.monotonic() + _RESTS_AFTER,
                    n_returned=waiting.n_returned + 1,
                )
            self._changed.notify_all()

    def done(self, waiting: WaitingFile) -> bool:
        """The taken version is in the index. Returns False if the file no longer exists."""
        with self._changed:
            self._taken.discard(waiting.name)
            exists = waiting.name in self._files
            if self._files.get(waiting.name) is waiting:
                del self._files[waiting.name]
            self._changed.notify_all()
            return exists

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

    def _waiting(self, name: str, file: FoundFile, known: IndexedFile | None) -> WaitingFile:
        old = self._files.get(name)
        if old is not None and old.file == file:
            return old
        # Clocks of file systems may differ, so a recent time only delays reading.
        rests = old is None and time.time() - file.changed_at > _RESTS_AFTER
        rests_at = time.monotonic() + (0.0 if rests else _RESTS_AFTER)
        if old is None:
            return WaitingFile(name, file, known, time.time(), rests_at)
        return replace(old, file=file, known=known, rests_at=rests_at)


def _order(waiting: WaitingFile) -> tuple[int, bool, int, str]:
    """New files before changed ones, then the smallest. A file that fails comes last."""
    return waiting.n_returned, waiting.known is not None, waiting.file.n_bytes, waiting.name
