"""Quantizes GGUF files with llama.cpp, for measurements of speed."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from app.engine.llama import quantization
from app.machine.cores import physical_cores
from bench.client import BenchError
from bench.native import CACHE

MODELS = CACHE / "models"


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
    threads = physical_cores()
    try:
        quantization.quantize(
            source, target, file_type.lower(), n_threads=threads, on_progress=lambda _: None
        )
    except quantization.QuantizationError as error:
        raise BenchError(f"{source} cannot be quantized: {error}") from error
