"""Ranking of documents by their relevance to a query."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.engine.embedder import Embedder, EmbeddingError
from app.engine.fair_lock import FairLock
from app.engine.llama import ModelLoadError
from app.engine.reranker import Reranker
from app.service.encoders.embedding import embed
from app.service.errors import GenerationFailed, TooLong
from app.weights.errors import ModelError


@dataclass(frozen=True, slots=True)
class Ranking:
    """Relevance of documents to a query, in the documents' order.

    Attributes:
        model: Name of the model that computed it.
        scores: 0 to 1 by a reranker; cosines by an embedding model.
        raw: Outputs of the model.
        n_tokens: Tokens that the model read.
    """

    model: str
    scores: list[float]
    raw: list[float]
    n_tokens: int


def open_reranker(
    path: Path, *, n_threads: int, lock: FairLock, on_failure: Callable[[BaseException], None]
) -> Reranker:
    """Load a reranker; blocking.

    Raises:
        ModelError: The model cannot be loaded.
    """
    try:
        return Reranker(path, n_threads=n_threads, lock=lock, on_failure=on_failure)
    except ModelLoadError as error:
        raise ModelError(f"RERANK_MODEL={path}: {error}") from error


async def rank(
    reranker: Reranker, query: str, documents: Sequence[str], *, field: str = "", truncate: bool = True
) -> Ranking:
    """Rank documents with a reranker.

    Args:
        reranker: The model.
        query: The query.
        documents: The documents, at least one.
        field: Name of the documents in the request, for error messages.
        truncate: Whether to drop the ends of pairs that are too long. If not, they are rejected.

    Raises:
        TooLong: A pair is too long.
        GenerationFailed: The computation failed.
    """

    def pairs() -> list[list[int]]:
        made = []
        for index, (tokens, is_truncated) in enumerate(reranker.pairs(query, documents)):
            if is_truncated and not truncate:
                raise TooLong(
                    f"with the query exceeds the {reranker.max_tokens} tokens of {reranker.name}",
                    field=f"{field}.{index}",
                )
            made.append(tokens)
        return made

    tokens = await asyncio.to_thread(pairs)
    try:
        outputs = (await asyncio.wrap_future(reranker.submit(tokens)))[:, 0].astype(float)
    except EmbeddingError as error:
        raise GenerationFailed(str(error)) from error
    scores = 1 / (1 + np.exp(-outputs)) if reranker.has_logits else outputs
    return Ranking(reranker.name, scores.tolist(), outputs.tolist(), sum(map(len, tokens)))


async def rank_by_cosine(
    embedder: Embedder,
    query: str,
    documents: Sequence[str],
    *,
    prefixes: tuple[str, str],
    field: str,
    truncate: bool,
) -> Ranking:
    """Rank documents by the cosine of their vectors and the query's.

    Args:
        embedder: The model.
        query: The query.
        documents: The documents, at least one.
        prefixes: Texts before the query and before each document.
        field: Name of the documents in the request, for error messages.
        truncate: Whether to drop the ends of texts that are too long. If not, they are rejected.

    Raises:
        ServiceError: A text is too long, or the computation failed.
    """
    texts = [prefixes[0] + query, *(prefixes[1] + document for document in documents)]
    made = await embed(embedder, texts, field=field, truncate="right" if truncate else None, normalize=True)
    cosines = (made.vectors[1:] @ made.vectors[0]).astype(float).tolist()
    return Ranking(embedder.name, cosines, cosines, made.n_tokens)
