"""Embeddings, for several dialects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request

from app.api.http.auth import client_of
from app.api.http.problems import invalid
from app.api.http.waiting import while_connected
from app.service import Embeddings, Service

MOST_INPUTS = 2048  # per request, as in OpenAI's API

Dimensions = Annotated[
    int | None,
    Field(
        ge=1,
        description="Dimensions of each vector. Fewer than the model's require a Matryoshka model.",
    ),
]

# Names of models whose first dimensions are usable as shorter vectors (Kusupati et al. 2022, "Matryoshka
# Representation Learning"). GGUF metadata lacks this property.
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
    """Embed texts with :meth:`Encoders.embed`. A disconnect of the client cancels the work.

    Args:
        request: A request whose body has been read.
        inputs: Texts, or token lists of the embedding model.
        field: Name of the inputs in the request, for error messages.
        dimensions: Dimensions of each vector. None: all.
        truncate: Side at which long texts are truncated. None: reject them.
        normalize: Whether to scale vectors to length 1.

    Raises:
        ApiError: The model has no vectors with these dimensions.
        ServiceError: Embedding failed.
        ClientDisconnect: The client has disconnected.
    """
    service: Service = request.app.state.service
    if service.embedder is not None and dimensions is not None:
        _check_dimensions(dimensions, service.embedder.dimensions, service.embedder.name)
    work = service.encoders.embed(
        inputs, field=field, truncate=truncate, normalize=normalize, client=client_of(request)
    )
    made = await while_connected(request, work)
    return made if dimensions is None else made.shortened(dimensions, normalize=normalize)


def _check_dimensions(wanted: int, available: int, model: str) -> None:
    if wanted > available:
        raise invalid(f"should be at most {available}, the dimensions of {model}, not {wanted}", "dimensions")
    if wanted < available and not _MATRYOSHKA.search(model):
        raise invalid(
            f"should be {available}, the dimensions of {model}, not {wanted}: the model is not known to be "
            "trained for fewer dimensions",
            "dimensions",
        )
