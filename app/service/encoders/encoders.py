"""The embedding model with its knowledge base, and the reranker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.config.settings import Settings
from app.engine.client import LOCAL, Client
from app.engine.embedder import Embedder
from app.engine.fair_lock import FairLock
from app.engine.reranker import Reranker
from app.machine.cores import physical_cores
from app.service.clients import TokenRates, check_model
from app.service.encoders.embedding import Embeddings, embed
from app.service.encoders.rerank import Ranking, open_reranker, rank, rank_by_cosine
from app.service.encoders.retrieval import Retrieval
from app.service.errors import NotOffered
from app.telemetry.metrics import Metrics
from app.telemetry.request import current

if TYPE_CHECKING:
    from app.knowledge.knowledge import Knowledge


class Encoders:
    """The models that do not generate text, as far as they are on.

    Attributes:
        reranker: The reranker; None if it is off or not loaded yet.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, rates: TokenRates, on_failure: Callable[[str], None]
    ) -> None:
        """``on_failure``: called on the event loop with the error message of a model whose thread failed."""
        self._settings = settings
        self._metrics = metrics
        self._rates = rates
        self._on_failure = on_failure
        self._retrieval: Retrieval | None = None
        self.reranker: Reranker | None = None

    @property
    def knowledge(self) -> Knowledge | None:
        """The knowledge base; None if it is off or not loaded yet."""
        return self._retrieval.knowledge if self._retrieval else None

    @property
    def embedder(self) -> Embedder | None:
        """The embedding model; None if it is off or not loaded yet."""
        return self._retrieval.embedder if self._retrieval else None

    async def load(self, embedding_model: Path | None, rerank_model: Path | None, lock: FairLock) -> None:
        """Load the models, and open the knowledge base.

        Args:
            embedding_model: A GGUF file.
            rerank_model: A GGUF file.
            lock: Shared with other computations on the same cores.

        Raises:
            UserError: A model cannot be loaded, or the settings do not fit it.
        """
        loop = asyncio.get_running_loop()

        def failed(model: str, error: BaseException) -> None:
            with suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(self._on_failure, f"the {model} failed: {error}")

        if embedding_model is not None:
            on_failure = partial(failed, "embedding model")
            self._retrieval = await asyncio.to_thread(
                Retrieval, self._settings, embedding_model, self._metrics, lock, on_failure
            )
        if rerank_model is not None:
            self.reranker = await asyncio.to_thread(
                open_reranker,
                rerank_model,
                n_threads=self._settings.model_threads or physical_cores(),
                lock=lock,
                on_failure=partial(failed, "reranker"),
            )

    @property
    def are_off(self) -> bool:
        return self._retrieval is None and self.reranker is None

    async def index(self) -> None:
        """Start indexing documents; return when it is complete, or after a few seconds."""
        if self._retrieval is not None:
            await self._retrieval.index()

    async def close(self) -> None:
        """Close the index and free the models. One that fails does not keep the others open."""
        async with AsyncExitStack() as parts:
            for part in (self.reranker, self._retrieval):
                if part is not None:
                    parts.push_async_callback(asyncio.to_thread, part.close)

    async def embed(
        self,
        inputs: Sequence[str | Sequence[int]],
        *,
        field: str = "input",
        truncate: Literal["left", "right"] | None = None,
        normalize: bool = True,
        client: Client = LOCAL,
    ) -> Embeddings:
        """Embed texts, or tokens of the embedding model.

        Args:
            inputs: The texts or token lists.
            field: Name of the request's field, for error messages.
            truncate: Side at which long texts are truncated. None: reject them.
            normalize: Whether to scale vectors to length 1.
            client: Origin of the request.

        Raises:
            NotOffered: The server has no embedding model.
            BadRequest: An input is empty, too long, or holds tokens of another vocabulary.
            GenerationFailed: The computation failed.
        """
        record = current()
        record.operation = "embeddings"
        if self._retrieval is None:
            raise NotOffered(
                "there is no embedding model; start the server with KNOWLEDGE=on or EMBEDDING_MODEL"
            )
        embedder = self._retrieval.embedder
        check_model(client, embedder.name)
        record.model = embedder.name
        with record.phase("embed"):
            made = await embed(embedder, inputs, field=field, truncate=truncate, normalize=normalize)
        record.n_input = made.n_tokens
        self._rates.spend(client, made.n_tokens)
        return made

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        field: str = "documents",
        truncate: bool = True,
        client: Client = LOCAL,
    ) -> Ranking:
        """Rank documents by their relevance to a query.

        Args:
            query: The query.
            documents: The documents, at least one.
            field: Name of the documents in the request, for error messages.
            truncate: Whether to drop the ends of long texts. If not, they are rejected.
            client: Origin of the request.

        Raises:
            NotOffered: The server has no reranker.
            TooLong: A text is too long.
            GenerationFailed: The computation failed.
        """
        record, settings = current(), self._settings
        record.operation = "rerank"
        if self.reranker is not None:
            check_model(client, self.reranker.name)
            ranking = await rank(self.reranker, query, documents, field=field, truncate=truncate)
        elif self._retrieval is not None and settings.rerank_with_embeddings == "on":
            embedder = self._retrieval.embedder
            check_model(client, embedder.name)
            prefixes = settings.embedding_query_prefix, settings.embedding_passage_prefix
            ranking = await rank_by_cosine(
                embedder, query, documents, prefixes=prefixes, field=field, truncate=truncate
            )
        else:
            raise NotOffered(
                "there is no reranker; start the server with RERANK_MODEL, or with an embedding model and "
                "RERANK_WITH_EMBEDDINGS=on"
            )
        record.model, record.n_input = ranking.model, ranking.n_tokens
        self._rates.spend(client, ranking.n_tokens)
        return ranking
