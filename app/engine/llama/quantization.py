"""llama.cpp's quantizer: writes a model in another number format."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import copy_context
from pathlib import Path

import llama_cpp.llama_cpp as lib

from app.engine.llama.native import last_error, set_log_listener, start_backend

# llama.cpp's types of files by their names, with bits per weight. Some tensors of a file have more.
FILE_TYPES: Mapping[str, tuple[int, float]] = {
    "f32": (lib.LLAMA_FTYPE_ALL_F32, 32.0),
    "f16": (lib.LLAMA_FTYPE_MOSTLY_F16, 16.0),
    "bf16": (lib.LLAMA_FTYPE_MOSTLY_BF16, 16.0),
    "q8_0": (lib.LLAMA_FTYPE_MOSTLY_Q8_0, 8.5),
    "q6_k": (lib.LLAMA_FTYPE_MOSTLY_Q6_K, 6.6),
    "q5_k_m": (lib.LLAMA_FTYPE_MOSTLY_Q5_K_M, 5.7),
    "q5_k_s": (lib.LLAMA_FTYPE_MOSTLY_Q5_K_S, 5.5),
    "q5_1": (lib.LLAMA_FTYPE_MOSTLY_Q5_1, 6.0),
    "q5_0": (lib.LLAMA_FTYPE_MOSTLY_Q5_0, 5.5),
    "q4_k_m": (lib.LLAMA_FTYPE_MOSTLY_Q4_K_M, 4.9),
    "q4_k_s": (lib.LLAMA_FTYPE_MOSTLY_Q4_K_S, 4.6),
    "iq4_nl": (lib.LLAMA_FTYPE_MOSTLY_IQ4_NL, 4.5),
    "iq4_xs": (lib.LLAMA_FTYPE_MOSTLY_IQ4_XS, 4.3),
    "q4_1": (lib.LLAMA_FTYPE_MOSTLY_Q4_1, 5.0),
    "q4_0": (lib.LLAMA_FTYPE_MOSTLY_Q4_0, 4.5),
    "q3_k_m": (lib.LLAMA_FTYPE_MOSTLY_Q3_K_M, 3.9),
    "q2_k": (lib.LLAMA_FTYPE_MOSTLY_Q2_K, 3.4),
}
_NAMES = {number: name for name, (number, _) in FILE_TYPES.items()}
# The quantizer logs each tensor: "[  3/ 272] blk.0.attn_k.weight …".
_TENSOR = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


class QuantizationError(Exception):
    """llama.cpp cannot quantize a model. The message has its last error."""


def file_type_name(number: int | None) -> str | None:
    """The name of a file type of a GGUF's header; None: another one."""
    return None if number is None else _NAMES.get(number)


def quantize(
    source: Path, target: Path, file_type: str, *, n_threads: int, on_progress: Callable[[float], None]
) -> None:
    """Write ``source`` in another format to ``target``.

    Args:
        source: A GGUF file; for a split model, its first part.
        target: The new file; overwritten if it exists.
        file_type: A name of FILE_TYPES. Formats of quantized weights are possible too.
        n_threads: Compute threads.
        on_progress: Called with the completed share.

    Raises:
        QuantizationError: llama.cpp cannot read, convert or write the model.
    """
    start_backend()
    params = lib.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[file_type][0]
    params.allow_requantize = True
    params.nthread = n_threads

    def on_line(line: str) -> None:
        if (tensor := _TENSOR.match(line)) is not None:
            on_progress(int(tensor[1]) / int(tensor[2]))

    ended: Future[int] = Future()

    def call() -> None:
        paths = str(source).encode(), str(target).encode()
        try:
            ended.set_result(lib.llama_model_quantize(*paths, ctypes.byref(params)))
        except BaseException as error:
            ended.set_exception(error)

    # On another thread: Python raises KeyboardInterrupt between two lines of the main thread, and the
    # callbacks of llama.cpp would discard it.
    thread = threading.Thread(target=copy_context().run, args=(call,), name="quantize", daemon=True)
    with set_log_listener(on_line):
        thread.start()
        code = ended.result()
    if code:
        raise QuantizationError(last_error(f"llama_model_quantize returned {code}"))
