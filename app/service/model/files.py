"""Files of a model, found or downloaded, and tested."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from app.config.settings import Settings
from app.engine.llama import ModelLoadError, start_matmul
from app.fit import preflight
from app.machine.cores import physical_cores
from app.machine.progress import report_stage
from app.weights.errors import ModelError
from app.weights.model import resolve_model
from app.weights.tokenizer import TokenizerRepo, load_tokenizer_repo


class ModelFiles(NamedTuple):
    """Checked files of one model. ``path``: a GGUF file; for a split model, its first part."""

    path: Path
    tokenizer_repo: TokenizerRepo | None


def find_model(settings: Settings) -> ModelFiles:
    """Find or download a model; blocking.

    Raises:
        UserError: It cannot be found, downloaded, read or converted.
    """
    report_stage("searching the model")
    return ModelFiles(resolve_model(settings), load_tokenizer_repo(settings))


def preflight_model(settings: Settings, path: Path) -> None:
    """Run the preflight; blocking.

    Raises:
        UserError: The model or the native library cannot be used.
    """
    report_stage("testing the model")
    preflight.check(
        path,
        n_threads=settings.model_threads or physical_cores(),
        n_gpu_layers=settings.model_gpu_layers,
        main_gpu=settings.main_gpu,
        matmul=settings.matmul == "auto",
    )
    start_matmul(enabled=settings.matmul == "auto")


@contextmanager
def readable_load_errors() -> Iterator[None]:
    """Convert the engine's ModelLoadError to a UserError."""
    try:
        yield
    except ModelLoadError as error:
        raise ModelError(str(error)) from error


def checked_files(settings: Settings) -> ModelFiles:
    """Find or download a model, and run its preflight; blocking.

    Raises:
        UserError: See `find_model` and `preflight_model`.
    """
    with readable_load_errors():
        files = find_model(settings)
        preflight_model(settings, files.path)
    return files
