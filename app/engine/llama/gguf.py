"""The header of a GGUF file, read with ggml's reader (``gguf.h``)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.engine.llama import last_error, native_function, start_backend
from app.engine.llama.native import GgufInitParams

_HANDLE = ctypes.c_void_p
# Readers of values by gguf_type; arrays, such as vocabularies, are not read.
_VALUES: Mapping[int, tuple[str, Any]] = {
    0: ("u8", ctypes.c_uint8),
    1: ("i8", ctypes.c_int8),
    2: ("u16", ctypes.c_uint16),
    3: ("i16", ctypes.c_int16),
    4: ("u32", ctypes.c_uint32),
    5: ("i32", ctypes.c_int32),
    6: ("f32", ctypes.c_float),
    7: ("bool", ctypes.c_bool),
    8: ("str", ctypes.c_char_p),
    10: ("u64", ctypes.c_uint64),
    11: ("i64", ctypes.c_int64),
    12: ("f64", ctypes.c_double),
}


class ModelFileError(Exception):
    """A file is not a complete GGUF. The message gives the reason."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a GGUF file.

    Attributes:
        values: Metadata by key, without arrays.
        n_tensors: Number of tensors in the file.
        n_weights: Number of their elements.
        n_bytes: Their size.
    """

    values: Mapping[str, Any]
    n_tensors: int
    n_weights: int
    n_bytes: int

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    @property
    def is_quantized(self) -> bool:
        """Whether most weights have less than 16 bits."""
        return self.n_bytes * 8 < self.n_weights * 15

    def of_architecture(self, key: str) -> Any:
        """A value of the architecture, such as ``context_length``; None if it is missing."""
        return self.values.get(f"{self.architecture}.{key}")


def read_header(path: Path) -> Header:
    """Read the header of a GGUF, and check that the file has all its tensors.

    Raises:
        ModelFileError: The file is not a GGUF, damaged, or incomplete.
        OSError: The file cannot be read.
    """
    with _opened(path) as gguf:
        needed = native_function("gguf_get_data_offset", ctypes.c_size_t, _HANDLE)(gguf)
        offset = native_function("gguf_get_tensor_offset", ctypes.c_size_t, _HANDLE, ctypes.c_int64)
        size = native_function("gguf_get_tensor_size", ctypes.c_size_t, _HANDLE, ctypes.c_int64)
        tensors = native_function("gguf_get_n_tensors", ctypes.c_int64, _HANDLE)(gguf)
        needed += max((offset(gguf, i) + size(gguf, i) for i in range(tensors)), default=0)
        sizes = [int(size(gguf, i)) for i in range(tensors)]
        n_weights = sum(_n_weights(gguf, i, n_bytes) for i, n_bytes in enumerate(sizes))
        header = Header(dict(_values(gguf)), tensors, n_weights, sum(sizes))
    found = path.stat().st_size
    if found < needed:
        raise ModelFileError(f"it is cut off: {found:,} bytes of at least {needed:,}")
    return header


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    start_backend()
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelFileError("it is not a GGUF file (it does not begin with the letters GGUF)")
    gguf = native_function("gguf_init_from_file", _HANDLE, ctypes.c_char_p, GgufInitParams)(
        str(path).encode(), GgufInitParams(no_alloc=True, ctx=None)
    )
    if not gguf:
        raise ModelFileError(f"its GGUF header is damaged or cut off ({last_error('no reason given')})")
    try:
        yield gguf
    finally:
        native_function("gguf_free", None, _HANDLE)(gguf)


def _n_weights(gguf: Any, index: int, n_bytes: int) -> int:
    kind = native_function("gguf_get_tensor_type", ctypes.c_int, _HANDLE, ctypes.c_int64)(gguf, index)
    in_block = int(native_function("ggml_blck_size", ctypes.c_int64, ctypes.c_int)(kind))
    return in_block * n_bytes // int(native_function("ggml_type_size", ctypes.c_size_t, ctypes.c_int)(kind))


def _values(gguf: Any) -> Iterator[tuple[str, Any]]:
    key = native_function("gguf_get_key", ctypes.c_char_p, _HANDLE, ctypes.c_int64)
    kind = native_function("gguf_get_kv_type", ctypes.c_int, _HANDLE, ctypes.c_int64)
    for index in range(native_function("gguf_get_n_kv", ctypes.c_int64, _HANDLE)(gguf)):
        if (known := _VALUES.get(kind(gguf, index))) is not None:
            name, result = known
            value = native_function(f"gguf_get_val_{name}", result, _HANDLE, ctypes.c_int64)(gguf, index)
            yield (
                key(gguf, index).decode("utf-8", "replace"),
                value.decode("utf-8", "replace") if isinstance(value, bytes) else value,
            )
