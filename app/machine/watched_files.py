"""Files that are read again after a change."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path


class WatchedFiles:
    """Calls a function after files have changed. Links are followed: Kubernetes replaces those of secrets."""

    def __init__(self, paths: Collection[Path], reload: Callable[[], None]) -> None:
        self._paths = paths
        self._reload = reload
        self._state = self._current()

    def check(self, *, force: bool = False) -> None:
        """Call the function if a file has changed since the last call, or if forced."""
        state = self._current()
        if force or state != self._state:
            self._state = state  # before the call: a file that changes meanwhile is read again
            self._reload()

    def _current(self) -> list[tuple[int, int, int, int] | None]:
        return [_identity(path) for path in self._paths]


def _identity(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    # ctime: copies that keep times (cp -p) may have the inode, time and size of the previous file.
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
