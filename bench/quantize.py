"""Quantizes GGUF files with llama.cpp, for measurements of speed."""

from __future__ import annotations

import ctypes
import hashlib
import tempfile
from pathlib import Path

import llama_cpp.llama_cpp as lib

from app.engine.llama import start_backend
from bench.client import BenchError
from bench.native import CACHE

MODELS = CACHE / "models"

_FILE_TYPES = {
    "Q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_1": lib.LLAMA_FTYPE_MOSTLY_Q4_1,
    "Q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_K_M": lib.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q5_K_M": lib.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "IQ4_XS": lib.LLAMA_FTYPE_MOSTLY_IQ4_XS,
}


def requantized(source: Path, file_type: str) -> Path:
    """Path of ``source`` in another file type in the cache. Writes it if necessary.

    Quantized weights are quantized again, so answers are worse. The speed is that of other files of the type.

    Raises:
        BenchError: llama.cpp cannot quantize the model.
    """
    contents = f"{source.name} {source.stat().st_size}"
    key = hashlib.sha256(contents.encode()).hexdigest()[:16]
    path = MODELS / f"{source.name.split('.')[0]}-{key}.{file_type}.gguf"
    if not path.exists():
        MODELS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=MODELS) as folder:
            finished = Path(folder, path.name)
            quantize(source, finished, file_type)
            finished.replace(path)
    return path


def quantize(source: Path, target: Path, file_type: str) -> None:
    """Write ``source`` in another file type to ``target``.

    Raises:
        BenchError: llama.cpp cannot quantize the model.
    """
    start_backend()
    params = lib.llama_model_quantize_default_params()
    params.ftype = _FILE_TYPES[file_type]
    params.allow_requantize = True
    code = lib.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if code:
        raise BenchError(f"{source} cannot be quantized: llama_model_quantize returned {code}")
