"""Process-wide parts of llama.cpp: setup, check of the library, logging, functions missing in llama_cpp."""

from __future__ import annotations

import ctypes
import logging
import mmap
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

from app.machine.installation import REBUILD

logger = logging.getLogger("tokenstream.llama")

_M_MMAP_THRESHOLD = -3  # malloc.h


class ModelLoadError(Exception):
    """llama.cpp could not load a model or create a context. The message is llama.cpp's last error."""


class UnsupportedLibraryError(ModelLoadError):
    """The llama.cpp library in use differs from the version that this code was written for."""

    def __init__(self, difference: str) -> None:
        super().__init__(
            f"the llama.cpp library in use does not match this version of Tokenstream: {difference}. "
            f"Run `{REBUILD}` and unset LLAMA_CPP_LIB_PATH"
        )


class DecodeError(Exception):
    """``llama_decode`` failed. ``code``: its return value; 1: no free KV cells, negative: fatal."""

    def __init__(self, code: int) -> None:
        super().__init__(f"llama_decode returned {code}")
        self.code = code


class DecodeAborted(DecodeError):
    """``llama_decode`` was stopped by ``Context.abort``."""


class GgufInitParams(ctypes.Structure):
    """``gguf_init_params`` of gguf.h, which llama_cpp does not declare."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class NativeSampling(ctypes.Structure):
    """``tokenstream_sampling`` of native/sampling.h."""

    _fields_ = (
        *((name, ctypes.c_float) for name in ("temperature", "top_p", "min_p", "typical_p")),
        *((f"{name}_penalty", ctypes.c_float) for name in ("repetition", "presence", "frequency")),
        *((name, ctypes.c_int32) for name in ("top_k", "repeat_last_n", "n_bias", "n_prompt")),
        ("bias", ctypes.POINTER(lib.llama_logit_bias)),
        ("prompt", ctypes.POINTER(ctypes.c_int32)),
    )


# Structs that llama_cpp does not declare.
_DECLARED = {"gguf_init_params": GgufInitParams, "tokenstream_sampling": NativeSampling}

# Functions that exist in every library of ``native/build.py``.
_EXPORTS = (
    *("tokenstream_layouts", "tokenstream_threadpool_new"),
    *("tokenstream_sampler_new", "tokenstream_sampler_sample", "tokenstream_sampler_free"),
    *("tokenstream_mask", "tokenstream_top_tokens"),
)


class _Layout(ctypes.Structure):
    """``tokenstream_layout`` of native/exports.cpp."""

    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_size_t))


# Warnings and errors of llama.cpp are logged at level debug. The last error is kept for error messages.
_last_error = ""
_listener: Callable[[str], None] | None = None
_captures: dict[int, list[str]] = {}  # by thread


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _user_data: object) -> None:
    global _last_error
    whole = text.decode("utf-8", "replace")
    if (lines := _captures.get(threading.get_ident())) is not None:
        lines.append(whole)
    line = whole.rstrip("\n")
    if _listener is not None:
        _listener(line)
    if level in (3, 4) and line:  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR
        if level == 4:
            _last_error = line
        logger.debug("%s", line)


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collect the log lines that llama.cpp writes on this thread, of all levels.

    The callback of llama.cpp is never replaced: another thread may be calling it.
    """
    thread, lines = threading.get_ident(), list[str]()
    _captures[thread] = lines
    try:
        yield lines
    finally:
        del _captures[thread]


@contextmanager
def set_log_listener(listener: Callable[[str], None]) -> Iterator[None]:
    """Pass all log lines of llama.cpp to a function while the block runs."""
    global _listener
    _listener = listener
    try:
        yield
    finally:
        _listener = None


_started = False
_matmul_started = False


def start_backend() -> None:
    """Initialize llama.cpp. Only the first call in a process has an effect.

    Raises:
        UnsupportedLibraryError: The library's functions or structs differ from what this code expects.
    """
    global _started
    if _started:
        return
    check_layouts()
    _return_large_buffers()
    lib.llama_log_set(_on_log, ctypes.c_void_p(0))
    lib.llama_backend_init()
    _started = True


def start_matmul(*, enabled: bool = True) -> None:
    """Choose the matrix kernels of models loaded later. Only the first call in a process has an effect.

    Not part of ``start_backend``: files are checked before the settings choose the kernels, and before the
    preflight shows that the kernels' instructions run on this CPU.

    Args:
        enabled: Use native/matmul.cpp for the formats whose test passes on this CPU.

    Raises:
        UnsupportedLibraryError: See ``start_backend``.
    """
    global _matmul_started
    start_backend()
    if _matmul_started:
        return
    if enabled and _has_matmul():
        _test_matmul()
    _matmul_started = True


def _has_matmul() -> bool:
    return hasattr(lib._lib, "tokenstream_matmul_start")


def _test_matmul() -> None:
    failed = native_function("tokenstream_matmul_start", ctypes.c_char_p)()
    if failed is None:
        logger.info("The library has no matrix kernels for this CPU; ggml's kernels are used")
    elif failed:
        logger.warning(
            "The matrix kernels for %s failed their test on this CPU; ggml's kernels are used",
            failed.decode(),
        )


def check_layouts() -> None:
    """Compare the library's functions and structs with those that this code was written for.

    Size and field offsets of each struct come from the headers that the library was compiled from.

    Raises:
        UnsupportedLibraryError: A function is missing, or a size or an offset differs.
    """
    for name in _EXPORTS:
        if not hasattr(lib._lib, name):
            raise UnsupportedLibraryError(f"it has no function {name}")
    entries = native_function("tokenstream_layouts", ctypes.POINTER(_Layout))()
    layouts: dict[str, int] = {}
    for entry in entries:  # an array without a length; its last entry has no name
        if entry.name is None:
            break
        layouts[entry.name.decode()] = entry.value
    if difference := _first_difference(layouts):
        raise UnsupportedLibraryError(difference)


def _first_difference(layouts: Mapping[str, int]) -> str | None:
    """The first struct or ``struct.field`` whose Python declaration has another size or offset."""
    for name, value in layouts.items():
        struct, _, field = name.partition(".")
        declared = _DECLARED.get(struct) or getattr(lib, struct, None)
        if declared is None or (field and not hasattr(declared, field)):
            return f"llama_cpp does not declare {name}"
        found = getattr(declared, field).offset if field else ctypes.sizeof(declared)
        if found != value:
            what = "is at offset" if field else "has a size of"
            return f"{name} {what} {value} bytes in the library and {found} bytes in llama_cpp"
    return None


def supports_gpu() -> bool:
    """Whether the library is built for a GPU, and finds one."""
    start_backend()
    return bool(lib.llama_supports_gpu_offload())


def attention_calls() -> int | None:
    """Attention operations that native/flash_attention.cpp has computed in this process.

    None: the library lacks it, or is built for a CPU without AVX2.
    """
    if not hasattr(lib._lib, "tokenstream_attention_calls"):
        return None
    calls = int(native_function("tokenstream_attention_calls", ctypes.c_int64)())
    return None if calls < 0 else calls


def matmul_calls() -> int:
    """Matrix products that native/matmul.cpp has computed in this process."""
    return int(native_function("tokenstream_matmul_calls", ctypes.c_int64)()) if _has_matmul() else 0


def _return_large_buffers() -> None:
    """Make freed allocations of 1 MiB or more return to the operating system at once.

    glibc raises this threshold to the largest freed buffer, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD).
    Saved sequences are that large: 40 MB stayed resident after a few long requests. An explicit threshold
    does not grow. Other C libraries lack mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)


@contextmanager
def drop_mapped_pages() -> Iterator[None]:
    """Drop the resident pages of files that the block maps. Later reads bring pages back.

    llama.cpp maps a model's file and reads all of it. ggml's repacking and AMX copy most weights into another
    order. Their pages of the file are not read again, but count as resident. Linux only.
    """
    before = _mapped_files()
    yield
    libc = ctypes.CDLL(None)
    for begin, end in _mapped_files() - before:
        # Locked pages stay resident.
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def _mapped_files() -> set[tuple[int, int]]:
    """Address ranges of read-only shared mappings, such as llama.cpp's (proc_pid_maps(5))."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    ranges = (line.split()[0].split("-") for line in lines if line.split()[1] == "r--s")
    return {(int(begin, 16), int(end, 16)) for begin, end in ranges}


def last_error(otherwise: str) -> str:
    """llama.cpp's last logged error, without the name of the C function."""
    return _last_error.partition(": ")[2] or otherwise


def native_function(name: str, result: Any, *arguments: Any) -> Any:
    """A C function that llama_cpp does not wrap.

    The lookup goes through libllama, which depends on ggml's libraries. Loading these by path would load a
    second copy: a wheel contains copies where a build has symbolic links.
    """
    function = getattr(lib._lib, name)
    function.restype, function.argtypes = result, list(arguments)
    return function
