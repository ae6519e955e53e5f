"""Embedding requests: tokenize, check, compute."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.engine.embedder import Embedder, EmbeddingError, normalized
from app.service.errors import BadRequest, GenerationFailed, TooLong


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of shape (inputs, dimensions), and the number of tokens of all inputs."""

    vectors: NDArray[np.float32]
    n_tokens: int

    def shortened(self, dimensions: int, *, normalize: bool) -> Embeddings:
        """Vectors of the first ``dimensions`` dimensions, scaled to length 1 if ``normalize``."""
        if dimensions == self.vectors.shape[1]:
            return self
        begin = self.vectors[:, :dimensions]
        return replace(self, vectors=normalized(begin) if normalize else begin)


async def embed(
    embedder: Embedder,
    inputs: Sequence[str | Sequence[int]],
    *,
    field: str,
    truncate: Literal["left", "right"] | None,
    normalize: bool,
) -> Embeddings:
    """Embed texts, or tokens of the embedding model; see ``Service.embed``."""
    sequences = await asyncio.to_thread(_tokenized, embedder, inputs, field, truncate)
    try:
        vectors = await asyncio.wrap_future(embedder.submit(sequences))
    except EmbeddingError as error:
        raise GenerationFailed(str(error)) from error
    return Embeddings(normalized(vectors) if normalize else vectors, sum(map(len, sequences)))


def _tokenized(
    embedder: Embedder,
    inputs: Sequence[str | Sequence[int]],
    field: str,
    truncate: Literal["left", "right"] | None,
) -> list[Sequence[int]]:
    sequences: list[Sequence[int]] = []
    for index, text in enumerate(inputs):
        place = field if len(inputs) == 1 else f"{field}.{index}"
        if isinstance(text, str):
            tokens: Sequence[int] = embedder.tokenize(text)
            if len(tokens) > embedder.max_tokens and truncate is not None:
                tokens = embedder.fit(text, keep="begin" if truncate == "right" else "end")
        else:
            tokens = text
            _check_tokens(embedder, tokens, place)
        if not tokens:
            raise BadRequest("should have at least one token", field=place)
        if len(tokens) > embedder.max_tokens:
            raise TooLong(
                f"has {len(tokens)} tokens; the maximum of {embedder.name} is {embedder.max_tokens}",
                field=place,
            )
        sequences.append(tokens)
    return sequences


def _check_tokens(embedder: Embedder, tokens: Sequence[int], place: str) -> None:
    """Reject tokens of another vocabulary: their vectors would be meaningless.

    Raises:
        BadRequest: The tokens cannot come from the embedding model's tokenizer.
    """
    unknown = next((token for token in tokens if not 0 <= token < embedder.n_vocab), None)
    if unknown is not None:
        problem = f"token {unknown} is not in its vocabulary of {embedder.n_vocab}"
    elif embedder.lacks_special_tokens(tokens):
        problem = f"special tokens are missing (an empty text has the tokens {embedder.tokenize('')})"
    else:
        return
    raise BadRequest(
        f"should be text, or tokens of {embedder.name}: {problem}. To send text from LangChain, create "
        "OpenAIEmbeddings with check_embedding_ctx_length=False",
        field=place,
    )
