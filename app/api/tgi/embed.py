"""``POST /embed``, as Text Embeddings Inference has it, and requests at ``/`` that ask for the same."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from app.api.http.body import read_ahead, read_json
from app.api.http.vectors import MOST_INPUTS, vectors
from app.api.tgi.generate import compat_generate
from app.api.tgi.requests import EmbedRequest
from app.api.tgi.validation import refusal
from app.config.settings import Settings
from app.service import Embeddings

_OF_GENERATING = {"parameters", "stream"}
_OF_EMBEDDING = {"normalize", "truncate", "truncation_direction", "prompt_name", "dimensions"}


async def embed(request: Request) -> Response:
    """Answer the vectors of one or several texts, in a list."""
    body = await read_json(request, EmbedRequest)
    prefix = _prefix(body.prompt_name, request.app.state.settings)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    if not texts or "" in texts:
        raise refusal("`inputs` cannot be empty")
    if len(texts) > MOST_INPUTS:
        raise refusal(f"batch size {len(texts)} > maximum allowed batch size {MOST_INPUTS}")
    made = await vectors(
        request,
        [prefix + text for text in texts],
        field="inputs",
        dimensions=body.dimensions,
        truncate=body.direction,
        normalize=body.normalize is not False,
    )
    return Response(await asyncio.to_thread(_written, made), media_type="application/json")


async def embed_or_generate(request: Request) -> Response:
    """Answer what huggingface_hub's client sends to the server's own address: the body tells which."""
    fields, again = await read_ahead(request)
    if asks_for_vectors(fields, request.headers):
        return await embed(again)
    return await compat_generate(again)


def asks_for_vectors(fields: Any, headers: Mapping[str, str]) -> bool:
    """Whether a body with ``inputs`` is to be embedded, not gone on with.

    A text alone may be either: it is gone on with, as TGI does, unless it comes from huggingface_hub, whose
    client says more of a text that is to be gone on with.
    """
    if not isinstance(fields, dict) or "inputs" not in fields or fields.keys() & _OF_GENERATING:
        return False
    if isinstance(fields["inputs"], list) or fields.keys() & _OF_EMBEDDING:
        return True
    return "hf_hub/" in headers.get("user-agent", "")


def _prefix(prompt_name: str | None, settings: Settings) -> str:
    """What is put before the texts of a kind (sentence-transformers calls that a prompt)."""
    if prompt_name is None:
        return ""
    return settings.embedding_query_prefix if prompt_name == "query" else settings.embedding_passage_prefix


def _written(made: Embeddings) -> bytes:
    return b"[" + b",".join(to_json(vector.tolist()) for vector in made.vectors) + b"]"
