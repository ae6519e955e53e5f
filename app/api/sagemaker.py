"""``POST /invocations``, the one route of SageMaker: the body tells the dialect, as in TGI."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from app.api.body import read_body
from app.api.openai.chat import chat_completions
from app.api.openai.completions import completions
from app.api.tgi.generate import compat_generate


async def invocations(request: Request) -> Response:
    """Answer a conversation, a completion, or TGI's request, by which field there is."""
    body = await read_body(request)
    try:
        fields: Any = from_json(body)
    except ValueError:
        fields = None  # whoever reads it next says what is wrong
    is_read = False

    async def receive() -> Message:
        nonlocal is_read
        if is_read:
            return await request.receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    again = Request(request.scope, receive)
    if isinstance(fields, dict) and "inputs" not in fields:
        if "messages" in fields:
            return await chat_completions(again)
        if "prompt" in fields:
            return await completions(again)
    return await compat_generate(again)
