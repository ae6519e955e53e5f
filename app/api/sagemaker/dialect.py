"""``POST /invocations``, the one route of SageMaker: the body tells the dialect, as in TGI."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from app.api.http.body import read_ahead
from app.api.openai.chat import chat_completions
from app.api.openai.completions import completions
from app.api.tgi.embed import embed_or_generate


async def invocations(request: Request) -> Response:
    """Answer a conversation, a completion, or TGI's request, by which field there is."""
    fields, again = await read_ahead(request)
    if isinstance(fields, dict) and "inputs" not in fields:
        if "messages" in fields:
            return await chat_completions(again)
        if "prompt" in fields:
            return await completions(again)
    return await embed_or_generate(again)
