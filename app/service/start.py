"""Common start of all commands with a model: checks, files, preflight, contexts, service."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from app.config.contexts import load_contexts
from app.config.settings import Settings
from app.engine.llama import supports_gpu
from app.machine.background import in_background
from app.machine.installation import IS_WHEEL, REBUILD, install_with
from app.machine.progress import report_stage, reported_to
from app.service.encoders import retrieval
from app.service.model.files import find_model, preflight_model, readable_load_errors
from app.service.model.tuned import with_tuned
from app.service.service import Service
from app.telemetry.metrics import Metrics
from app.weights.embedding import resolve_embedding_model, resolve_rerank_model
from app.weights.served import served_models
from app.weights.tokenizer import TokenizerRepo

logger = logging.getLogger("tokenstream.service")


class Files(NamedTuple):
    """Checked files of the models."""

    model: Path
    tokenizer_repo: TokenizerRepo | None
    embedding_model: Path | None
    rerank_model: Path | None


class Start:
    """A service whose models are found, downloaded and loaded in the background.

    Attributes:
        service: The service; unloaded until `load` returns.
    """

    def __init__(self, settings: Settings) -> None:
        """Check the settings and the contexts, without models.

        Raises:
            UserError: A setting or the contexts file cannot be used.
        """
        settings = _without_missing_gpu(settings)
        contexts = load_contexts(settings.contexts_file)
        served = [replace(model, settings=with_tuned(model.settings)) for model in served_models(settings)]
        names = [model.name for model in served] if len(served) > 1 else []
        self.service = Service(settings, contexts, Metrics(settings.instance_label, names), served)
        retrieval.check(settings)

    async def load(
        self,
        *,
        warm: Collection[str] | None = None,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        """Find or download the models, test them, load them and prefill contexts.

        Args:
            warm: Names of the contexts to prefill; None: all.
            on_failure: Called once, on the event loop, with the reason for ``Service.failure``.

        Raises:
            UserError: The models cannot be found or loaded, or the settings do not fit them.
        """
        with readable_load_errors(), reported_to(self.service.on_stage):
            # Not a thread of the loop: a download cannot be interrupted, and the loop waits for its threads.
            first = self.service.models.default.settings
            files = await in_background(lambda: prepare(self.service.settings, first))
            report_stage("loading the model")
            await self.service.load(*files, warm=warm, on_failure=on_failure)


def prepare(settings: Settings, model_settings: Settings | None = None) -> Files:
    """Find or download the models, and run the preflight; blocking.

    Args:
        settings: The settings of the server.
        model_settings: Those of the first model. None: the same.

    Raises:
        UserError: A file or the native library cannot be used.
        ModelLoadError: llama.cpp rejects the model.
    """
    of_model = model_settings or settings
    found = find_model(of_model)
    files = Files(
        found.path,
        found.tokenizer_repo,
        resolve_embedding_model(settings) if settings.embeds else None,
        resolve_rerank_model(settings),
    )
    preflight_model(of_model, found.path)
    return files


def _without_missing_gpu(settings: Settings) -> Settings:
    """The settings with MODEL_GPU_LAYERS=0 if the library is not built for a GPU, or finds none."""
    if settings.model_gpu_layers == 0 or supports_gpu():
        return settings
    logger.warning(
        "MODEL_GPU_LAYERS=%d has no effect: the library is not built for a GPU, or finds none. "
        "The CPU computes all layers. To build it for a GPU: %s",
        settings.model_gpu_layers,
        install_with("GPU", "cuda") if not IS_WHEEL else f"GPU=cuda {REBUILD}",
    )
    return settings.model_copy(update={"model_gpu_layers": 0})
