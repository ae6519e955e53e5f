"""Functions of a compiled shared library: in this process, or under an emulator of another CPU."""

from __future__ import annotations

import ctypes
import hashlib
import struct
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

CALLS_FROM_PIPE = Path(__file__).with_name("calls_from_pipe.cpp")

Argument = int | str | NDArray[Any]


def compiled(command: Sequence[str], folder: Path) -> Path:
    """The output of a compiler in ``folder``. Processes with the same folder compile it once."""
    output = folder / hashlib.sha256("\0".join(command).encode()).hexdigest()
    with FileLock(f"{output}.lock"):
        if not output.exists():
            unfinished = output.with_suffix(".unfinished")
            subprocess.run([*command, "-o", str(unfinished)], check=True)
            unfinished.rename(output)
    return output


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
