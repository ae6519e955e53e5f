"""Streams of the OpenAI dialect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from app.api.dialect import Problem
from app.api.http import events
from app.api.http.events import event
from app.api.openai.errors import openai_body
from app.service import Generation

_DONE = b"data: [DONE]\n\n"


def event_stream(
    request: Request,
    generations: Sequence[Generation],
    chunks: AsyncIterator[Sequence[Mapping[str, Any]]],
) -> Response:
    """A response of chunks; ``chunks``: one sequence per step."""
    return events.event_stream(request, generations, encoded(chunks), error_event=_error_event)


async def encoded(chunks: AsyncIterator[Sequence[Mapping[str, Any]]]) -> AsyncIterator[bytes]:
    """Encode the events of each step as one part."""
    async for of_step in chunks:
        yield b"".join(map(event, of_step))
    yield _DONE


def _error_event(problem: Problem) -> bytes:
    return event(openai_body(problem), prefix="event: error\ndata: ")
