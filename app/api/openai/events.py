"""Server-sent events as OpenAI's clients expect them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request

from app.api.http.answering import StreamedAnswer
from app.api.http.problems import Problem
from app.api.openai.errors import openai_body
from app.service import Generation

_DONE = b"data: [DONE]\n\n"


def event(data: Any) -> bytes:
    """One event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


def _error_event(problem: Problem) -> bytes:
    return b"event: error\n" + event(openai_body(problem))


async def _bytes(chunks: AsyncIterator[list[dict[str, Any]]]) -> AsyncIterator[bytes]:
    """The chunks of each step in one piece."""
    async for of_step in chunks:
        yield b"".join(map(event, of_step))
    yield _DONE


def event_stream(
    request: Request, generations: Sequence[Generation], chunks: AsyncIterator[list[dict[str, Any]]]
) -> StreamedAnswer:
    """A response that sends the chunks of every step as events."""
    return StreamedAnswer(
        request,
        generations,
        _bytes(chunks),
        media_type="text/event-stream",
        error_part=_error_event,
        keep_alive=b": keep-alive\n\n",
    )
