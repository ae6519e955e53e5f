"""Functions of a compiled shared library: in this process, or under an emulator of another CPU."""

from __future__ import annotations

import ctypes
import hashlib
import struct
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from tests.conftest import ROOT

CALLS_FROM_PIPE = Path(__file__).with_name("calls_from_pipe.cpp")

Argument = int | str | NDArray[Any]

_UNUSED_FOR = 30 * 24 * 3600  # seconds, after which a compiled file is deleted


def compiled(command: Sequence[str], folder: Path) -> Path:
    """The output of a compiler in ``folder``. A change of compiler, flags or sources gives another file."""
    version, sources = (
        subprocess.run(one, check=True, capture_output=True).stdout
        for one in ([command[0], "--version"], [*command, "-E", "-P"])
    )
    flags = "\0".join(command).replace(str(ROOT), "")
    output = folder / hashlib.sha256(b"\0".join([flags.encode(), version, sources])).hexdigest()
    with FileLock(f"{output}.lock"):
        if output.exists():
            output.touch()
        else:
            _delete_unused(folder)
            unfinished = output.with_suffix(".unfinished")
            subprocess.run([*command, "-o", str(unfinished)], check=True)
            unfinished.rename(output)
    return output


def _delete_unused(folder: Path) -> None:
    for path in folder.iterdir():
        if path.stat().st_mtime < time.time() - _UNUSED_FOR:
            path.unlink(missing_ok=True)


def compile_library(compiler: Sequence[str], source: Path, flags: Iterable[str], folder: Path) -> Path:
    """Compile as in a Release build."""
    options = ["-std=c++17", "-O3", "-DNDEBUG", "-w", "-shared", "-fPIC", *flags]
    return compiled([*compiler, *options, str(source)], folder)


class Library(Protocol):
    """Functions take integers, text and arrays, to which they can write. They return int64_t or nothing."""

    def call(self, name: str, *arguments: Argument) -> int: ...


class LoadedLibrary:
    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def call(self, name: str, *arguments: Argument) -> int:
        function = self._library[name]
        function.restype = ctypes.c_int64
        return int(function(*map(_native, arguments)))


def _native(argument: Argument) -> Any:
    if isinstance(argument, np.ndarray):
        return argument.ctypes.data_as(ctypes.c_void_p)
    return argument.encode() if isinstance(argument, str) else ctypes.c_int64(argument)


class EmulatedLibrary:
    """A child process executes the calls of calls_from_pipe.cpp, compiled as ``program``."""

    def __init__(self, emulator: Sequence[str], program: Path, library: Path) -> None:
        command = [*emulator, str(program), str(library)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        self._child.communicate()

    def call(self, name: str, *arguments: Argument) -> int:
        message = [_number(len(name)), name.encode(), _number(len(arguments))]
        for argument in arguments:
            if isinstance(argument, int):
                message += [_number(-1), _number(argument)]
            else:
                content = argument.encode() + b"\0" if isinstance(argument, str) else argument.tobytes()
                message += [_number(len(content)), content]
        assert self._child.stdin
        self._child.stdin.write(b"".join(message))
        self._child.stdin.flush()
        (result,) = struct.unpack("=q", self._read(8))
        for argument in arguments:
            if isinstance(argument, str):
                self._read(len(argument.encode()) + 1)
            elif isinstance(argument, np.ndarray):
                content = self._read(argument.nbytes)
                argument[...] = np.frombuffer(content, argument.dtype).reshape(argument.shape)
        return int(result)

    def _read(self, size: int) -> bytes:
        assert self._child.stdout
        content = self._child.stdout.read(size)
        if len(content) < size:
            raise RuntimeError(f"the emulated process ended with status {self._child.wait()}")
        return content


def _number(value: int) -> bytes:
    return struct.pack("=q", value)
