"""QUANTIZE=auto: the fastest number format that loses no more than the source has lost."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from app.engine.llama.gguf import read_header
from app.engine.llama.quantization import FILE_TYPES, file_type_name
from app.machine.folders import cache_folder
from app.machine.identity import check_key
from app.machine.progress import report_stage
from app.measure.comparison import N_REPEATS, Noise, compare
from app.measure.measurer import Measurer, Trial, TrialFailed
from app.measure.mix import Mix
from app.weights.errors import ModelError
from app.weights.quantized import quantized, target_of

logger = logging.getLogger("tokenstream.hub")

# Formats with kernels in native/matmul.cpp, those with the most bits first.
FORMATS = ("q8_0", "q6_k", "q5_k_m", "q4_1", "q4_k_m", "q4_0")
# Most increase of the loss that counts as none: 0.5 % of perplexity. Q8_0 of Q4_1 changes it by 0.1 %.
MOST_LOSS = 0.005


@dataclass(frozen=True, slots=True)
class Converted:
    """A model in another format.

    Attributes:
        file_type: A name of FORMATS.
        path: The file.
        is_new: Whether it was written for this comparison.
        loss: Increase of the mean loss per token.
    """

    file_type: str
    path: Path
    is_new: bool
    loss: float

    def discard(self) -> None:
        """Delete the file, unless an earlier start has written it."""
        if self.is_new:
            shutil.rmtree(self.path.parent)


def kept_formats(measurer: Measurer, source: Trial, folder: Path, name: str) -> Iterator[Converted]:
    """Convert the model to formats that lose no more than it has lost. Others are deleted.

    A quantized model is not converted to formats with fewer bits. After the first format that loses more,
    those with fewer bits are not tried.

    Args:
        measurer: Measures the loss.
        source: The model and its settings.
        folder: MODELS_DIR.
        name: Name of the model.

    Raises:
        ModelError: The disk is full or not writable, or llama.cpp cannot convert the model.
        TrialFailed: The loss of the source cannot be measured.
    """
    header = read_header(source.model)
    current = file_type_name(header.values.get("general.file_type"))
    least_bits = FILE_TYPES[current][1] if current and header.is_quantized else 0.0
    before = measurer.loss(source)
    for file_type in FORMATS:
        if file_type == current or FILE_TYPES[file_type][1] < least_bits:
            continue
        report_stage(f"comparing number formats: {file_type}")
        is_new = not target_of(source.model, file_type, folder, name).is_file()
        path = quantized(
            source.model, file_type, folder, n_threads=source.n_threads, name=name, tells_loss=False
        )
        try:
            loss = measurer.loss(replace(source, model=path)) - before
        except TrialFailed as error:
            logger.warning("%s cannot be measured: %s", path, error)
            loss = float("inf")
        converted = Converted(file_type, path, is_new, loss)
        logger.info("%s as %s: perplexity changes by %+.2f %%", name, file_type, 100 * loss)
        if loss > MOST_LOSS:
            converted.discard()
            return
        yield converted


def fastest_format(source: Trial, folder: Path, name: str) -> Path:
    """The model in the fastest format. The choice is remembered for this model, CPU, library and settings.

    Args:
        source: The model and its settings.
        folder: MODELS_DIR.
        name: Name of the model.

    Returns:
        ``source.model``, or a file in ``folder``.

    Raises:
        ModelError: The remembered format cannot be written again.
    """
    place = _place(source)
    with _only_process(place):
        chosen = _remembered(place)
        if chosen is None:
            chosen, is_complete = _choose(source, folder, name)
            if is_complete:
                _remember(place, chosen, source.model)
    if not chosen:
        return source.model
    return quantized(source.model, chosen, folder, n_threads=source.n_threads, name=name, tells_loss=False)


def _choose(source: Trial, folder: Path, name: str) -> tuple[str, bool]:
    """The fastest format, and whether all were compared. Empty: that of the source."""
    logger.info("QUANTIZE=auto: comparing number formats of %s, once", name)
    best, chosen, is_complete = source, None, True
    with Measurer(Mix()) as measurer:
        try:
            measurer.fit(source)
            noise = Noise.of([measurer.rates(source) for _ in range(N_REPEATS)])
            for converted in kept_formats(measurer, source, folder, name):
                candidate = replace(source, model=converted.path)
                measures = partial(measurer.rates, candidate), partial(measurer.rates, best)
                found = compare(*measures, noise, is_late=lambda: False)
                logger.info("%s as %s: %s (%.2f x)", name, converted.file_type, found.reason, found.factor)
                if not found.is_better:
                    converted.discard()
                    continue
                if chosen is not None:
                    chosen.discard()
                best, chosen = candidate, converted
        except (TrialFailed, ModelError) as error:
            is_complete = False
            logger.warning(
                "QUANTIZE=auto: the comparison ended early, and the next start repeats it: %s", error
            )
    kept = chosen.file_type if chosen else ""
    logger.info("QUANTIZE=auto: %s", kept or f"no other format of {name} is faster")
    return kept, is_complete


# --- the remembered choice


def _place(source: Trial) -> Path:
    conditions = [
        check_key(source.model.resolve(), 0, 0, source.matmul),
        str([source.n_threads, source.flash_attention, source.kv_type, FORMATS]),
    ]
    return cache_folder() / "formats" / f"{hashlib.sha256(' '.join(conditions).encode()).hexdigest()}.json"


@contextmanager
def _only_process(place: Path) -> Iterator[None]:
    """Let other processes wait: each would delete files of the other."""
    from filelock import FileLock

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        logger.debug("%s cannot be locked: %s", place, error)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _remembered(place: Path) -> str | None:
    try:
        found = json.loads(place.read_text())["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not measured, or written by another version
    return found if found in ("", *FORMATS) else None


def _remember(place: Path, file_type: str, model: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps({"model": model.name, "format": file_type}))
    except OSError as error:
        logger.warning("QUANTIZE=auto: the choice cannot be kept, so the next start repeats it: %s", error)
