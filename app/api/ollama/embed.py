"""``POST /api/embed`` and ``POST /api/embeddings``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from app.api.dialect import JSON
from app.api.http.body import read_json
from app.api.http.problems import invalid
from app.api.http.vectors import MOST_INPUTS, vectors
from app.api.ollama.replies import EmbeddingReply, EmbedReply
from app.api.ollama.requests import OllamaEmbeddingsRequest, OllamaEmbedRequest
from app.service import Service


async def embed(request: Request) -> Response:
    service: Service = request.app.state.service
    started = time.perf_counter()
    body = await read_json(request, OllamaEmbedRequest)
    inputs = [body.input] if isinstance(body.input, str) else body.input
    if len(inputs) > MOST_INPUTS:
        raise invalid(f"should have at most {MOST_INPUTS} entries, not {len(inputs)}", "input")
    made = await vectors(
        request,
        inputs,
        field="input",
        dimensions=body.dimensions,
        truncate=None if body.truncate is False else "right",
    )
    reply: EmbedReply = {
        "model": service.embedding_name or "",
        "embeddings": made.vectors.tolist(),
        "total_duration": round((time.perf_counter() - started) * 1e9),
        "load_duration": 0,
        "prompt_eval_count": made.n_tokens,
    }
    # On a thread: encoding a million numbers would delay streams.
    return Response(await asyncio.to_thread(to_json, reply), media_type=JSON)


async def embeddings(request: Request) -> Response:
    body = await read_json(request, OllamaEmbeddingsRequest)
    made = await vectors(request, [body.prompt], field="prompt", truncate="right")
    vector: Sequence[float] = made.vectors[0].tolist()
    reply: EmbeddingReply = {"embedding": [*vector]}
    return Response(to_json(reply), media_type=JSON)
