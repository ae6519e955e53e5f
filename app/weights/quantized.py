"""QUANTIZE: models in another number format, written once and kept."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from app.engine.llama.gguf import Header, ModelFileError, read_header
from app.engine.llama.quantization import FILE_TYPES, QuantizationError, file_type_name, quantize
from app.machine.progress import Progress, report_stage
from app.weights.errors import ModelError, readable_size

logger = logging.getLogger("tokenstream.hub")

FOLDER = "quantized"  # in MODELS_DIR

_FORMAT_IN_NAME = re.compile(r"[.-](i?q\d\w*|b?f16|f32)$", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Some tensors have more bits than the format, in small models most of them.
_RESERVE = 1.3


def quantized(
    source: Path, file_type: str, folder: Path, *, n_threads: int, name: str, tells_loss: bool = True
) -> Path:
    """The model of ``source`` in another format. It is written at the first call.

    Args:
        source: A checked GGUF file; for a split model, its first part.
        file_type: A name of FILE_TYPES.
        folder: MODELS_DIR.
        n_threads: Compute threads.
        name: Name of the model.
        tells_loss: Whether to log the effect of a second quantization.

    Returns:
        ``source`` if it has this format, else a file in ``folder``.

    Raises:
        ModelError: The disk is full or not writable, or llama.cpp cannot convert the model.
    """
    header = read_header(source)
    current = file_type_name(header.values.get("general.file_type"))
    if current == file_type:
        logger.info("%s has the format %s already", source.name, file_type)
        return source
    target = target_of(source, file_type, folder, name)
    if not target.is_file():
        write_quantized(source, target, file_type, n_threads=n_threads, header=header, tells_loss=tells_loss)
    return target


def target_of(source: Path, file_type: str, folder: Path, name: str) -> Path:
    """Place of the model in another format; see `quantized`."""
    stem = _FORMAT_IN_NAME.sub("", name)
    return folder / FOLDER / _key(source, file_type) / f"{stem}.{file_type.upper()}.gguf"


def delete_quantized(source: Path, folder: Path, name: str) -> int:
    """Delete the files that `quantized` has written of a model; see there. Returns the freed bytes."""
    freed = 0
    for file_type in FILE_TYPES:
        target = target_of(source, file_type, folder, name)
        if target.is_file():
            freed += target.stat().st_size
            shutil.rmtree(target.parent)
    return freed


def write_quantized(
    source: Path,
    target: Path,
    file_type: str,
    *,
    n_threads: int,
    header: Header,
    tells_loss: bool = True,
    elsewhere: str = "set MODELS_DIR to",
) -> None:
    """Write a model in another format. Another process that writes it is waited for.

    ``elsewhere``: how to write it to another disk or folder, for error messages.

    Raises:
        ModelError: The disk is full or not writable, or llama.cpp cannot convert the model.
    """
    from filelock import FileLock

    what = f"QUANTIZE={file_type}: {target}"
    unfinished = target.with_suffix(".incomplete")  # of an interrupted process, if it exists
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if target.is_file():
                return
            unfinished.unlink(missing_ok=True)
            _check_space(header, target, file_type, what, elsewhere)
            if tells_loss:
                _tell_loss(source, header, file_type)
            operation = f"quantizing {source.name} to {file_type}"
            report_stage(operation, 0.0)
            progress = Progress(logger, operation)
            try:
                quantize(source, unfinished, file_type, n_threads=n_threads, on_progress=progress.report)
                read_header(unfinished)  # a full disk truncates it
                unfinished.replace(target)
            finally:
                unfinished.unlink(missing_ok=True)
    except (QuantizationError, ModelFileError) as error:
        raise ModelError(f"{what} cannot be written: {error}: choose another format or model") from error
    except OSError as error:
        raise ModelError(
            f"{what} cannot be written ({error.strerror or error}): {elsewhere} a writable folder"
        ) from error
    finally:
        with suppress(OSError):
            target.with_suffix(".lock").unlink()
    logger.info("%s: %s is written", target, readable_size(target.stat().st_size))


def _key(source: Path, file_type: str) -> str:
    """Hash of the source and of all options of the conversion."""
    resolved = source.resolve()
    # Blobs of the hub are named by their hashes.
    is_blob = _SHA256.fullmatch(resolved.name)
    status = resolved.stat()
    contents = resolved.name if is_blob else [str(resolved), status.st_size, status.st_mtime_ns]
    facts = json.dumps([contents, file_type, version("llama-cpp-python")])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _check_space(header: Header, target: Path, file_type: str, what: str, elsewhere: str) -> None:
    needed = int(header.n_weights * FILE_TYPES[file_type][1] / 8 * _RESERVE)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise ModelError(
            f"{what} may need {readable_size(needed)} and {readable_size(free)} is free: "
            f"free some space, or {elsewhere} another disk"
        )


def _tell_loss(source: Path, header: Header, file_type: str) -> None:
    """Log the effect of a second quantization."""
    current = file_type_name(header.values.get("general.file_type"))
    if not header.is_quantized:
        return
    if current is None or FILE_TYPES[file_type][1] < FILE_TYPES[current][1]:
        logger.warning(
            "%s is quantized already (%s): %s of it loses more than %s of the original weights would",
            *(source.name, current or "unknown format", file_type, file_type),
        )
    else:
        logger.warning(
            "%s is quantized already (%s): %s keeps nearly all of it, but not what %s has lost",
            *(source.name, current, file_type, current),
        )
