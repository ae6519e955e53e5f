"""Sequence states on disk, so that the result of a prefill survives a restart.

A file holds one state after three lines of text (``head -3``)::

    tokenstream state 1              magic and version of this format
    9f86d081884c7d659a2feaa0c55a…    SHA-256 of the following bytes
    {"key": {…}, "n_bytes": …, …}    dependencies and size of the state
    …                                the state, as returned by llama_state_seq_get_data

llama.cpp does not validate states: a damaged or forged one can corrupt memory. A checksum detects damage.
Permissions prevent forgery: only the owner of the process, or root, may be able to write folder and files.
Most CPUs have instructions for SHA-256, so it is almost as fast as CRC-32 (16 and 11 ms for 17 MB).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from app.machine.memory import returnable_buffer

logger = logging.getLogger("tokenstream.state_files")

_FORMAT = b"tokenstream state "
_MAGIC = _FORMAT + b"1\n"
_MAX_LINE = 1 << 16  # bytes; a damaged file may have no line end

_NAME = re.compile(r"[0-9a-f]{64}\.kv")
_TEMPORARY_NAME = re.compile(r"[0-9a-f]{64}\.kv\.\w+\.tmp")
_ABANDONED = 3600.0  # seconds after which the process that writes a temporary file is assumed dead
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
# A symbolic link is an error. A named pipe is opened without waiting for a writer.
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _Unusable(Exception):
    """A file is not a valid state for its name; the message has the reason."""


class StateFiles:
    """A folder of saved states, keyed by their exact tokens.

    Processes can share a folder, threads an object. States contain the text of users, so folder and files are
    created for their owner only. A folder that others can write to is not used; a warning is logged once.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, str],
        *,
        max_bytes: int,
        adapters: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Set the folder; the first ``save`` creates it.

        Args:
            folder: Location of the files. Other files in it are not touched.
            key: Dependencies of a state besides its tokens, such as model file, library version and KV type.
                States of another key are not found.
            max_bytes: Maximum size of all files of the folder, including those of other keys. One more file
                may exist during a save.
            adapters: The identity of each adapter, by its name.
        """
        self._folder = folder
        self._keys = {name: {**key, "adapter": identity} for name, identity in adapters.items()}
        self._keys[""] = dict(key)
        self._max_bytes = max_bytes
        self._warned: set[str] = set()

    def n_bytes(self, tokens: Sequence[int], adapter: str = "") -> int:
        """Size of the file for these tokens, a few hundred bytes more than the state; 0 if there is none."""
        try:
            return self._path(tokens, adapter).lstat().st_size
        except OSError:  # ``load`` logs the reason
            return 0

    def load(self, tokens: Sequence[int], adapter: str = "") -> NDArray[np.uint8] | None:
        """The state that was saved for exactly these tokens under this key and adapter, or None.

        A damaged or foreign file is logged as a warning and ignored.
        """
        path = self._path(tokens, adapter)
        try:
            if not self._is_trusted():
                return None
            with open(path, "rb", opener=lambda name, _: os.open(name, _OPEN_FLAGS)) as file:
                state = self._read(file, self._header(tokens, adapter))
                with contextlib.suppress(OSError):  # a read-only folder can be used too
                    os.utime(file.fileno())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (_Unusable, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            logger.warning("The saved state %s is ignored: %s", path, reason)
            return None
        return state

    def save(self, tokens: Sequence[int], state: NDArray[np.uint8], adapter: str = "") -> None:
        """Save the state of these tokens, completely or not at all.

        The least recently used files are removed until the folder is within its limit. A state larger than
        the limit is not saved. If the folder cannot be written, a warning is logged once.
        """
        state = np.ascontiguousarray(state)
        head = _head({**self._header(tokens, adapter), "n_bytes": state.nbytes}, state)
        n_bytes = len(head) + state.nbytes
        if n_bytes > self._max_bytes:
            self._warn_once("A state of %d bytes is not saved: the limit is %d", n_bytes, self._max_bytes)
            return
        path = self._path(tokens, adapter)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._is_trusted():
                _write_whole(path, head, state)
                self._make_room(newest=path)
        except OSError as error:
            self._warn_once("No state can be saved in %s: %s", self._folder, error.strerror)

    def _is_trusted(self) -> bool:
        """Whether only this user and root can write to the folder.

        Raises:
            OSError: There is no such folder, or it cannot be examined.
        """
        status = self._folder.stat()
        if not _is_ours(status):
            remedy, reason = "set CACHE_DIR to a folder of your own", f"user {status.st_uid} owns it"
        elif status.st_mode & _OTHERS_MAY_WRITE:
            remedy, reason = f"run: chmod go-w {self._folder}", "other users can write to it"
        else:
            return True
        self._warn_once("The folder %s is not used for states: %s; %s", self._folder, reason, remedy)
        return False

    def _path(self, tokens: Sequence[int], adapter: str) -> Path:
        digest = hashlib.sha256(json.dumps(self._keys[adapter], sort_keys=True).encode())
        digest.update(_as_bytes(tokens))
        return self._folder / f"{digest.hexdigest()}.kv"

    def _header(self, tokens: Sequence[int], adapter: str) -> dict[str, object]:
        return {
            "key": self._keys[adapter],
            "n_tokens": len(tokens),
            "tokens": hashlib.sha256(_as_bytes(tokens)).hexdigest(),
        }

    def _read(self, file: BufferedReader, expected: Mapping[str, object]) -> NDArray[np.uint8]:
        status = os.fstat(file.fileno())
        _check_status(status)
        magic = file.readline(len(_MAGIC))
        if magic != _MAGIC:
            raise _Unusable("its format has another version" if magic.startswith(_FORMAT) else "not a state")
        checksum, header = file.readline(_MAX_LINE), file.readline(_MAX_LINE)
        n_bytes = status.st_size - file.tell()
        _check_header(header, {**expected, "n_bytes": n_bytes})
        state = returnable_buffer(n_bytes)
        if file.readinto(state.data) != n_bytes or _checksum(header, state) != checksum:
            raise _Unusable("damaged, its checksum does not match")
        return state

    def _make_room(self, newest: Path) -> None:
        """Remove temporary files of dead processes, and the least recently used files beyond the limit."""
        used: list[tuple[int, int, str]] = []  # time of last use in ns, bytes, name
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process has removed it
                    status = entry.stat(follow_symlinks=False)
                    if not stat.S_ISREG(status.st_mode):
                        continue
                    if _NAME.fullmatch(entry.name):
                        used.append((status.st_mtime_ns, status.st_size, entry.name))
                    elif _TEMPORARY_NAME.fullmatch(entry.name) and (
                        status.st_mtime < time.time() - _ABANDONED
                    ):
                        Path(entry.path).unlink()
        excess = sum(size for _, size, _ in used) - self._max_bytes
        for _, size, name in sorted(used):
            if excess <= 0:
                break
            if name != newest.name:
                (self._folder / name).unlink(missing_ok=True)
                excess -= size

    def _warn_once(self, message: str, *values: object) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message, *values)


def _head(header: Mapping[str, object], state: NDArray[np.uint8]) -> bytes:
    line = json.dumps(header).encode() + b"\n"
    return _MAGIC + _checksum(line, state) + line


def _as_bytes(tokens: Sequence[int]) -> bytes:
    return np.asarray(tokens, "<i4").tobytes()


def _checksum(header: bytes, state: NDArray[np.uint8]) -> bytes:
    digest = hashlib.sha256(header)
    digest.update(state.data)
    return digest.hexdigest().encode() + b"\n"


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid in (os.geteuid(), 0)


def _check_status(status: os.stat_result) -> None:
    """Check type, owner and mode of an open file.

    Raises:
        _Unusable: The file is not regular, or others than this user and root can write to it.
    """
    if not stat.S_ISREG(status.st_mode):
        raise _Unusable("not a regular file")
    if not _is_ours(status):
        raise _Unusable(f"user {status.st_uid} owns it")
    if status.st_mode & _OTHERS_MAY_WRITE:
        raise _Unusable("other users can write to it")


def _check_header(line: bytes, expected: Mapping[str, object]) -> None:
    """Compare a file's header with the expected one.

    Raises:
        _Unusable: They differ; the message names the fields.
    """
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        raise _Unusable("damaged, its header is not JSON") from None
    if not isinstance(header, dict):
        raise _Unusable("damaged, its header is not a JSON object")
    if header.get("n_bytes") != expected["n_bytes"]:
        raise _Unusable(f"it has {expected['n_bytes']} bytes of {header.get('n_bytes')}")
    different = [name for name in sorted({*header, *expected}) if header.get(name) != expected.get(name)]
    if different:
        raise _Unusable(f"its header differs in {', '.join(different)}")


def _write_whole(path: Path, head: bytes, state: NDArray[np.uint8]) -> None:
    """Write a file atomically, and durably.

    Raises:
        OSError: The file cannot be written; no part of it remains.
    """
    # mkstemp creates it with mode 0600. It is in the same folder because a rename cannot cross file systems.
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(head)
            file.write(state.data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
