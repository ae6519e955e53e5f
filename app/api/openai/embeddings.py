"""``POST /v1/embeddings``: texts as vectors."""

from __future__ import annotations

import asyncio
import base64

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from app.api.http.body import read_json
from app.api.http.vectors import vectors
from app.api.openai.embedding_schemas import EmbeddingsRequest
from app.service import Embeddings, Service


async def embeddings(request: Request) -> Response:
    """Answer the vectors of one or several texts."""
    service: Service = request.app.state.service
    body = await read_json(request, EmbeddingsRequest)
    made = await vectors(request, body.inputs, field="input", dimensions=body.dimensions)
    is_base64 = body.encoding_format == "base64"
    # A million numbers take a while to write: streams go on meanwhile.
    content = await asyncio.to_thread(_written, made, service.embedding_name or "", is_base64=is_base64)
    return Response(content, media_type="application/json")


def _written(made: Embeddings, model: str, *, is_base64: bool) -> bytes:
    data = b",".join(
        to_json({"object": "embedding", "index": index, "embedding": _encoded(vector, is_base64=is_base64)})
        for index, vector in enumerate(made.vectors)
    )
    usage = {"prompt_tokens": made.n_tokens, "total_tokens": made.n_tokens}
    rest = to_json({"model": model, "usage": usage})
    return b'{"object":"list","data":[' + data + b"]," + rest[1:]


def _encoded(vector: NDArray[np.float32], *, is_base64: bool) -> str | list[float]:
    if is_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
