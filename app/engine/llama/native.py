"""What of llama.cpp is there once a process: its logging, its set-up, its functions without a wrapper."""

from __future__ import annotations

import ctypes
import functools
import logging
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

logger = logging.getLogger("tokenstream.llama")

_M_MMAP_THRESHOLD = -3  # malloc.h


class ModelLoadError(Exception):
    """llama.cpp could not load a model or make a context for it; the message is its own last complaint."""


class DecodeError(Exception):
    """``llama_decode`` failed; ``code`` is its return value (1: no room in KV memory, below 0: fatal)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"llama_decode returned {code}")
        self.code = code


class DecodeAborted(DecodeError):
    """``llama_decode`` was stopped by ``Context.abort``."""


# llama.cpp's own lines go to debug level; the last complaint is kept for error messages.
_last_complaint = ""


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _user_data: object) -> None:
    global _last_complaint
    line = text.decode("utf-8", "replace").rstrip("\n")
    if level in (3, 4) and line:  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR
        if level == 4:
            _last_complaint = line
        logger.debug("%s", line)


@functools.cache
def start_backend() -> None:
    """Set llama.cpp up, once."""
    _give_large_buffers_back()
    lib.llama_log_set(_on_log, ctypes.c_void_p(0))
    lib.llama_backend_init()


def _give_large_buffers_back() -> None:
    """Have every allocation of a megabyte or more come from the system, and go back to it when freed.

    glibc raises that bound to the largest buffer freed so far, 32 MB at most (mallopt(3), M_MMAP_THRESHOLD).
    Saved sequences and a model's vocabulary are just that large: their places stayed resident, 40 MB after
    a few long requests. A bound that is set stays. Other C libraries have no such function, or no such habit.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)


@contextmanager
def mapped_files_come_as_needed() -> Iterator[None]:
    """Have files that are mapped within leave memory; what is read of them again comes back by itself.

    llama.cpp maps a model's file and reads all of it in. Where the CPU computes with a copy of the weights
    in another order (ggml's repacking, AMX), most of the file is never looked at again, and yet counts as
    much as the copy does. Other systems than Linux keep it.
    """
    before = _mapped_files()
    yield
    libc = ctypes.CDLL(None)
    for begin, end in _mapped_files() - before:
        # Locked pages refuse, and stay.
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def _mapped_files() -> set[tuple[int, int]]:
    """Where files are mapped to be read and shared, as llama.cpp maps them (proc_pid_maps(5))."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    ranges = (line.split()[0].split("-") for line in lines if line.split()[1] == "r--s")
    return {(int(begin, 16), int(end, 16)) for begin, end in ranges}


def last_complaint(otherwise: str) -> str:
    """The last error that llama.cpp logged."""
    # llama.cpp prefixes its lines with the C function that complains: of no use to the reader.
    return _last_complaint.partition(": ")[2] or otherwise


def native_function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of ggml that llama_cpp does not wrap.

    It is looked up through libllama, which depends on ggml. To load ggml's libraries by their paths would
    load them twice: a wheel holds copies where a build has links to one file.
    """
    function = getattr(lib._lib, name)
    function.restype, function.argtypes = result, list(arguments)
    return function
