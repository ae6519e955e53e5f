"""Vectors for the dialects that ask for them: how many numbers they may have, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from starlette.requests import Request

from app.api.http.problems import invalid
from app.api.http.waiting import while_connected
from app.engine.embedder import Embedder, normalized
from app.service import Embeddings, Service

MOST_INPUTS = 2048  # of one request, as OpenAI has it

# Models whose first numbers are a vector of their own (Kusupati et al. 2022, "Matryoshka Representation
# Learning"). No key of a GGUF file says so: it is told by the names of those that were trained for it.
_MATRYOSHKA = re.compile(
    r"embedding-?gemma|qwen3-embedding|jina-embeddings-v[3-5]|mxbai-embed-(large|2d)|"
    r"nomic-embed-text-v(1\.5|2)|arctic-embed-([ml]-v2|m-v1\.5)",
    re.IGNORECASE,
)


async def vectors(
    request: Request,
    inputs: Sequence[str | Sequence[int]],
    *,
    field: str,
    dimensions: int | None = None,
    truncate: Literal["left", "right"] | None = None,
    normalize: bool = True,
) -> Embeddings:
    """The vectors of texts, as :meth:`Service.embed`; left when the client goes away.

    Args:
        request: One whose body has been read.
        inputs: Texts, or tokens of the embedding model.
        field: What the request calls them.
        dimensions: How many numbers a vector is to have; None is all.
        truncate: From which side texts are cut that are too long; None refuses them.
        normalize: Whether vectors get length 1.

    Raises:
        ApiError: The model has no vectors of so many numbers.
        ServiceError: They cannot be made.
        ClientDisconnect: The client has gone.
    """
    service: Service = request.app.state.service
    if service.embedder is not None and dimensions is not None:
        _check_dimensions(service.embedder, dimensions)
    work = service.embed(inputs, field=field, truncate=truncate, normalize=normalize)
    made = await while_connected(request, work)
    if dimensions is None or dimensions == made.vectors.shape[1]:
        return made
    begin = made.vectors[:, :dimensions]
    return replace(made, vectors=normalized(begin) if normalize else begin)


def _check_dimensions(embedder: Embedder, wanted: int) -> None:
    own = embedder.dimensions
    if wanted == own:
        return
    if wanted > own:
        raise invalid(f"should be at most {own}, as {embedder.name} has them, not {wanted}", "dimensions")
    if not _MATRYOSHKA.search(embedder.name):
        raise invalid(
            f"should be {own}, as {embedder.name} has them, not {wanted}: it is not known to be trained for "
            "fewer",
            "dimensions",
        )
