"""Common start of all commands with a model: checks, files, preflight, contexts, service."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.config.contexts import load_contexts
from app.config.settings import Settings
from app.engine.llama import ModelLoadError, start_matmul
from app.fit import preflight
from app.machine.cores import physical_cores
from app.service import retrieval
from app.service.service import Service
from app.telemetry.metrics import Metrics
from app.weights.embedding import resolve_embedding_model, resolve_rerank_model
from app.weights.errors import ModelError
from app.weights.model import resolve_model
from app.weights.tokenizer import TokenizerRepo, load_tokenizer_repo


@dataclass(frozen=True, slots=True)
class Start:
    """An unloaded service, and the checked files to load."""

    service: Service
    model: Path
    tokenizer_repo: TokenizerRepo | None
    embedding_model: Path | None
    rerank_model: Path | None

    async def load(
        self,
        *,
        warm: Collection[str] | None = None,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        """Load the models and prefill contexts.

        Args:
            warm: Names of the contexts to prefill; None: all.
            on_failure: Called once, on the event loop, with the reason for ``Service.failure``.

        Raises:
            UserError: The models do not load, or the settings do not fit them.
        """
        with readable_load_errors():
            await self.service.load(
                self.model,
                self.tokenizer_repo,
                self.embedding_model,
                self.rerank_model,
                warm=warm,
                on_failure=on_failure,
            )


def prepare(settings: Settings) -> Start:
    """Check the settings, download missing files and run the preflight; blocking.

    Raises:
        UserError: A setting, a file or the native library cannot be used.
    """
    contexts = load_contexts(settings.contexts_file)
    service = Service(settings, contexts, Metrics(settings.instance_label))
    retrieval.check(settings)
    start = Start(
        service,
        resolve_model(settings),
        tokenizer_repo=load_tokenizer_repo(settings),
        embedding_model=resolve_embedding_model(settings) if settings.embeds else None,
        rerank_model=resolve_rerank_model(settings),
    )
    with readable_load_errors():
        preflight.check(
            start.model,
            n_threads=settings.model_threads or physical_cores(),
            n_gpu_layers=settings.model_gpu_layers,
            main_gpu=settings.main_gpu,
            matmul=settings.matmul == "auto",
        )
        start_matmul(enabled=settings.matmul == "auto")
    return start


@contextmanager
def readable_load_errors() -> Iterator[None]:
    """Convert the engine's ModelLoadError to a UserError."""
    try:
        yield
    except ModelLoadError as error:
        raise ModelError(str(error)) from error
