"""Calls of ggml's C functions, for tests of single operations."""

from __future__ import annotations

import ctypes
from typing import Any

from app.engine.llama import native_function

F32, F16, Q8_0, I32 = 0, 1, 8, 26  # ggml_type

P, I64 = ctypes.c_void_p, ctypes.c_int64


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", P), ("no_alloc", ctypes.c_bool))


def call(name: str, result: Any, *arguments: Any) -> Any:
    """Call a C function. A Python int is passed as a pointer, so C integers need a ctypes type."""
    kinds = {float: ctypes.c_float, bool: ctypes.c_bool, int: P, type(None): P, bytes: ctypes.c_char_p}
    types = [kinds.get(type(argument), type(argument)) for argument in arguments]
    return native_function(name, result, *types)(*arguments)


def new_context(size: int, *, no_alloc: bool = False) -> int:
    """A ``ggml_context`` with ``size`` bytes. With ``no_alloc``, its tensors have no memory for values."""
    return int(call("ggml_init", P, _InitParams(size, None, no_alloc)))


def compute(graph: int, n_threads: int, *, reference: bool = False, pool: int | None = None) -> None:
    """Compute a graph on the CPU backend, on the threads of ``pool`` or on new ones."""
    backend = call("ggml_backend_cpu_init", P)
    call("ggml_backend_cpu_set_n_threads", None, backend, ctypes.c_int(n_threads))
    call("ggml_backend_cpu_set_use_ref", None, backend, reference)
    call("ggml_backend_cpu_set_threadpool", None, backend, pool)
    assert call("ggml_backend_graph_compute", ctypes.c_int, backend, graph) == 0
    call("ggml_backend_free", None, backend)
