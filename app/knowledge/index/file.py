"""The SQLite file of an index and the lock of its folder."""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from app.knowledge.errors import StoreError
from app.knowledge.index import tables

_log = logging.getLogger(__name__)


class IndexFile:
    """A file that one process uses at a time. A damaged file, and one with other facts, is replaced."""

    def __init__(self, folder: Path, meta: Mapping[str, str]) -> None:
        """Lock the folder.

        Args:
            folder: Folder of the index; created if missing.
            meta: Facts about the contents, stored in the file.

        Raises:
            StoreError: The folder cannot be written, or another process uses it.
        """
        self._folder = folder
        self._path = folder / "index.sqlite3"
        self._meta = meta
        self._inode = 0
        self._lock = self._take_lock()

    def open(self, load: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
        """Open the file, or create a new one.

        Args:
            load: Reads the contents. May raise ValueError if they are damaged.

        Raises:
            StoreError: The file cannot be read or written.
        """
        with self.explained():
            db = self._open(load)
            self._inode = self._path.stat().st_ino
            return db

    def connect(self, *, new: bool = False) -> sqlite3.Connection:
        """Another connection to the file."""
        # Mode rw: a deleted file must not be recreated empty.
        uri = f"{self._path.absolute().as_uri()}?mode={'rwc' if new else 'rw'}"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=10)
        # No sync per commit: a power failure may lose the last documents, but not the index.
        db.executescript(
            "pragma synchronous = normal; pragma wal_autocheckpoint = 0; pragma cache_size = -8000"
        )
        return db

    def check(self) -> None:
        """Check that the file is still in its folder.

        Raises:
            StoreError: It is gone.
        """
        try:
            inode = self._path.stat().st_ino
        except OSError:
            inode = None
        if inode != self._inode:
            # Open connections use the deleted file: searches would return stale data, and writes would be
            # lost.
            raise StoreError(
                f"the index in KNOWLEDGE_INDEX={self._folder} is gone; restart the server to index the"
                " documents again"
            )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise StoreError instead of errors of SQLite and of the disk."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StoreError(self._not_usable(error)) from error
        except sqlite3.DatabaseError as error:
            with suppress(OSError):  # the folder may be missing
                self._damage_mark.touch()
            raise StoreError(
                f"the index in KNOWLEDGE_INDEX={self._folder} is damaged ({error}); restart the server to"
                " index the documents again"
            ) from error
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EPERM, errno.EISDIR):
                raise
            raise StoreError(self._not_usable(error)) from error

    def release(self) -> None:
        """Release the folder."""
        self._lock.release()

    def _take_lock(self) -> FileLock:
        lock = FileLock(self._folder / "lock", timeout=0, is_singleton=False)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise StoreError(
                f"KNOWLEDGE_INDEX={self._folder} is in use by another process; stop it, or set"
                " KNOWLEDGE_INDEX to another folder"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise StoreError(self._not_usable(error)) from error
        return lock

    def _not_usable(self, error: Exception) -> str:
        return (
            f"KNOWLEDGE_INDEX={self._folder} cannot be used: {error}; set it to a writable folder"
            " on a disk with free space"
        )

    @property
    def _damage_mark(self) -> Path:
        """A file that marks the index as damaged. The next start creates a new one."""
        return self._folder / "damaged"

    def _open(self, load: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
        if self._path.exists():
            reason = "it is damaged"
            if not self._damage_mark.exists():
                try:
                    return self._open_file(load)
                except _OtherIdentityError as error:
                    reason = str(error)
                except sqlite3.OperationalError as error:
                    # A locked, full or read-only file is not damaged. A file without a table is.
                    if "no such" not in str(error):
                        raise
                except (sqlite3.DatabaseError, ValueError) as error:
                    reason = f"it is damaged ({error})"
            _log.warning("a new index is created in %s: %s", self._folder, reason)
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._damage_mark.unlink(missing_ok=True)
        return self._open_file(load, new=True)

    def _open_file(
        self, load: Callable[[sqlite3.Connection], None], *, new: bool = False
    ) -> sqlite3.Connection:
        db = self.connect(new=new)
        try:
            if new:
                db.executescript(f"pragma journal_mode = wal; begin; {tables.TABLES}")
                db.executemany("insert into meta values (?, ?)", self._meta.items())
                db.execute("commit")
            elif dict(db.execute("select key, value from meta where key != 'counted'")) != self._meta:
                raise _OtherIdentityError("it has another embedding model or other settings")
            load(db)
            db.execute("update meta set value = value where key = 'format'")  # fails if it is read-only
        except BaseException:
            db.close()
            raise
        return db


class _OtherIdentityError(Exception):
    """The index on disk has vectors that are not comparable with this model's."""
