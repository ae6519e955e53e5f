"""Check that a file is a complete GGUF, with ggml's reader (``gguf.h``)."""

from __future__ import annotations

import ctypes
from pathlib import Path

from app.engine.llama import last_error, native_function, start_backend
from app.engine.llama.native import GgufInitParams


class ModelFileError(Exception):
    """A file is not a complete GGUF. The message gives the reason."""


def check_gguf(path: Path) -> None:
    """Check that ``path`` is a GGUF with all its tensors.

    Raises:
        ModelFileError: The file is not a GGUF, damaged, or incomplete.
        OSError: The file cannot be read.
    """
    start_backend()
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelFileError("it is not a GGUF file (it does not begin with the letters GGUF)")
    handle = ctypes.c_void_p
    gguf = native_function("gguf_init_from_file", handle, ctypes.c_char_p, GgufInitParams)(
        str(path).encode(), GgufInitParams(no_alloc=True, ctx=None)
    )
    if not gguf:
        raise ModelFileError(f"its GGUF header is damaged or cut off ({last_error('no reason given')})")
    try:
        needed = native_function("gguf_get_data_offset", ctypes.c_size_t, handle)(gguf)
        offset = native_function("gguf_get_tensor_offset", ctypes.c_size_t, handle, ctypes.c_int64)
        size = native_function("gguf_get_tensor_size", ctypes.c_size_t, handle, ctypes.c_int64)
        tensors = native_function("gguf_get_n_tensors", ctypes.c_int64, handle)(gguf)
        needed += max((offset(gguf, i) + size(gguf, i) for i in range(tensors)), default=0)
    finally:
        native_function("gguf_free", None, handle)(gguf)
    found = path.stat().st_size
    if found < needed:
        raise ModelFileError(f"it is cut off: {found:,} bytes of at least {needed:,}")
