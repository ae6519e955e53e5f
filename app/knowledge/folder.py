"""The documents in a folder tree."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.knowledge.reading.reader import MOST_BYTES, SUFFIXES

logger = logging.getLogger("tokenstream.knowledge")

_LEADS_OUT = "is a link to a file outside DATA_PATH; KNOWLEDGE_FOLLOW_LINKS=on follows it"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file in the folder.

    Attributes:
        path: Where to read it.
        n_bytes: Its size.
        changed_at: Time of the last change of content or status, in seconds since 1970.
        stamp: Changes with every change of the file.
        problem: Reason why it must not be read, or None.
    """

    path: Path
    n_bytes: int
    changed_at: float
    stamp: str
    problem: str | None = None

    def fingerprint(self) -> str:
        """SHA-256 of the content, or the stamp if it cannot or must not be read."""
        if self.problem is not None or self.n_bytes > MOST_BYTES:
            return f"not read {self.stamp}"
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                while part := file.read(1 << 20):
                    digest.update(part)
        except OSError:
            return f"unreadable {self.stamp}"
        return digest.hexdigest()


class Folder:
    """A folder of documents with its subfolders. Links are followed within it, or everywhere."""

    def __init__(self, path: Path, *, follow_links: bool) -> None:
        self.path = path
        self._follows_links = follow_links
        self._reported: set[Path] = set()  # paths whose warnings are logged

    @property
    def identity(self) -> tuple[int, int] | None:
        """Device and inode; None if the folder does not exist."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None

    def files(self, unseen: list[str]) -> Iterator[tuple[str, FoundFile]]:
        """Names and files of all visible documents. Unreadable folders are appended to ``unseen``."""

        def note(error: OSError) -> None:
            logger.warning("%s cannot be listed: %s", error.filename, error.strerror)
            below = Path(error.filename).relative_to(self.path).as_posix()
            unseen.append("" if below == "." else f"{below}/")

        seen: set[str] = set()
        for folder, subfolders, names in os.walk(self.path, onerror=note, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a circular link
                subfolders.clear()
                continue
            if not self._may_read(real):
                subfolders.clear()
                self._warn(Path(folder), "is a link to a folder outside DATA_PATH")
                continue
            seen.add(real)
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in names:
                path = Path(folder, name)
                if name.startswith((".", "~$")) or path.suffix.lower() not in SUFFIXES:
                    continue
                if not _is_text(path.as_posix()):
                    self._warn(path, "its name is not UTF-8")
                elif (file := self._look(path)) is not None:
                    yield path.relative_to(self.path).as_posix(), file

    def file(self, name: str) -> FoundFile | None:
        """The present state of a document; None if it does not exist."""
        return self._look(self.path / name)

    def _look(self, path: Path) -> FoundFile | None:
        try:
            is_inside = self._may_read(os.path.realpath(path))
            status = path.stat() if is_inside else path.lstat()
        except OSError:
            return None  # deleted in the meantime, or a broken link
        if is_inside and not stat.S_ISREG(status.st_mode):
            return None  # reading a pipe would block
        stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        changed_at = status.st_ctime_ns / 1e9
        return FoundFile(path, status.st_size, changed_at, stamp, None if is_inside else _LEADS_OUT)

    def _may_read(self, real: str) -> bool:
        root = os.path.realpath(self.path)
        return self._follows_links or real == root or real.startswith(root.rstrip(os.sep) + os.sep)

    def _warn(self, path: Path, reason: str) -> None:
        """Log once that a path is skipped."""
        if path not in self._reported:
            self._reported.add(path)
            logger.warning("%r is skipped: %s", str(path), reason)


def _is_text(name: str) -> bool:
    """Whether a file name is UTF-8: Python maps other bytes to lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
