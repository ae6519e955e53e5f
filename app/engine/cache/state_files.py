"""Saved sequence states on disk: what a prefill computed outlives the process.

A file holds one state, and three lines before it that a person can read with ``head -3``::

    tokenstream state 1              magic and version of this layout
    9f86d081884c7d659a2feaa0c55a…    SHA-256 of all that follows
    {"key": {…}, "n_bytes": …, …}    what the state depends on, and how long it is
    …                                the state, as llama_state_seq_get_data gave it

llama.cpp trusts what it is given as a state, so a damaged file must never reach it. SHA-256 rather than a
CRC for that reason: most CPUs have instructions for it (17 MB in 16 ms, CRC-32 takes 11).
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

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger("tokenstream.state_files")

_FORMAT = b"tokenstream state "
_MAGIC = _FORMAT + b"1\n"
_LONGEST_LINE = 1 << 16  # bytes; a damaged file may have no line end at all

_NAME = re.compile(r"[0-9a-f]{64}\.kv")
_TEMPORARY_NAME = re.compile(r"[0-9a-f]{64}\.kv\.\w+\.tmp")
_ABANDONED = 3600.0  # seconds after which a temporary file's writer is taken for dead


class _Unusable(Exception):
    """A file is not the state that its name promises; the message says why."""


class StateFiles:
    """A folder of saved states, each found by its exact tokens.

    Several processes may share a folder, and several threads an object. States hold the users' text: the
    folder is made for its owner alone, and so is every file.
    """

    def __init__(self, folder: Path, key: Mapping[str, str], *, max_bytes: int) -> None:
        """Name the folder; it is made when the first state is saved.

        Args:
            folder: Where the files are. Other files in it are left alone.
            key: All that a state depends on beside its tokens: model file, library version, KV type and so
                on. States saved under another key are not found.
            max_bytes: The most that all files of the folder may take, those of other keys included. While
                a file is being written there is one more.
        """
        self._folder = folder
        self._key = dict(key)
        self._max_bytes = max_bytes
        self._key_digest = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode())
        self._warned: set[str] = set()

    def load(self, tokens: Sequence[int]) -> NDArray[np.uint8] | None:
        """The state that was saved for exactly these tokens under this key, or None.

        A damaged or foreign file is logged as a warning and counts as none.
        """
        path = self._path(tokens)
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for a writer
                raise _Unusable("it is not a regular file")
            with path.open("rb") as file:
                state = self._read(file, tokens)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (_Unusable, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            logger.warning("The saved state %s is ignored: %s", path, reason)
            return None
        with contextlib.suppress(OSError):  # a folder that cannot be written still serves
            os.utime(path)
        return state

    def save(self, tokens: Sequence[int], state: NDArray[np.uint8]) -> None:
        """Keep the state of these tokens, whole or not at all, and make room for it.

        The files that were not used for the longest time are removed until the folder is within its
        bound. A state beyond the bound is not saved. Where the folder cannot be written, that is logged
        once and nothing is saved.
        """
        state = np.ascontiguousarray(state)
        head = self._head(tokens, state)
        n_bytes = len(head) + state.nbytes
        if n_bytes > self._max_bytes:
            self._warn_once("A state of %d bytes is not saved: %d are allowed", n_bytes, self._max_bytes)
            return
        path = self._path(tokens)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_whole(path, head, state)
            self._make_room(newest=path)
        except OSError as error:
            self._warn_once("No state can be saved in %s: %s", self._folder, error.strerror)

    def _path(self, tokens: Sequence[int]) -> Path:
        digest = self._key_digest.copy()
        digest.update(_as_bytes(tokens))
        return self._folder / f"{digest.hexdigest()}.kv"

    def _header(self, tokens: Sequence[int], n_bytes: int) -> dict[str, object]:
        return {
            "key": self._key,
            "n_bytes": n_bytes,
            "n_tokens": len(tokens),
            "tokens": hashlib.sha256(_as_bytes(tokens)).hexdigest(),
        }

    def _head(self, tokens: Sequence[int], state: NDArray[np.uint8]) -> bytes:
        header = json.dumps(self._header(tokens, state.nbytes)).encode() + b"\n"
        return _MAGIC + _checksum(header, state) + header

    def _read(self, file: BufferedReader, tokens: Sequence[int]) -> NDArray[np.uint8]:
        magic = file.readline(len(_MAGIC))
        if magic != _MAGIC:
            raise _Unusable(
                "it is of another version" if magic.startswith(_FORMAT) else "it is no saved state"
            )
        checksum, header = file.readline(_LONGEST_LINE), file.readline(_LONGEST_LINE)
        n_bytes = os.fstat(file.fileno()).st_size - file.tell()
        _check_header(header, self._header(tokens, n_bytes))
        state = np.empty(n_bytes, np.uint8)
        if file.readinto(state.data) != n_bytes or _checksum(header, state) != checksum:
            raise _Unusable("it is damaged, its checksum does not match")
        return state

    def _make_room(self, newest: Path) -> None:
        """Remove what dead processes left, and the least recently used files beyond the bound."""
        used: list[tuple[int, int, str]] = []  # time of last use in ns, bytes, name
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process was quicker
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


def _as_bytes(tokens: Sequence[int]) -> bytes:
    return np.asarray(tokens, "<i4").tobytes()


def _checksum(header: bytes, state: NDArray[np.uint8]) -> bytes:
    digest = hashlib.sha256(header)
    digest.update(state.data)
    return digest.hexdigest().encode() + b"\n"


def _check_header(line: bytes, wanted: Mapping[str, object]) -> None:
    """Compare a file's header with the one that it must have.

    Raises:
        _Unusable: They differ; the message says in what.
    """
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        raise _Unusable("it is damaged, its header is not JSON") from None
    if not isinstance(header, dict):
        raise _Unusable("it is damaged, its header is no JSON object")
    if header.get("n_bytes") != wanted["n_bytes"]:
        raise _Unusable(f"it holds {wanted['n_bytes']} bytes of {header.get('n_bytes')}")
    different = [name for name in sorted({*header, *wanted}) if header.get(name) != wanted.get(name)]
    if different:
        raise _Unusable(f"it was saved for something else, its header differs in {', '.join(different)}")


def _write_whole(path: Path, head: bytes, state: NDArray[np.uint8]) -> None:
    """Write a file that other processes see when it is complete and on the disk, or not at all.

    Raises:
        OSError: It cannot be written; nothing of it is left.
    """
    # Made with mode 0600, in the same folder because a rename does not cross file systems.
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
