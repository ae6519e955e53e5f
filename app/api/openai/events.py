"""Streams of the OpenAI dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from app.api.http import events
from app.api.http.events import event
from app.api.openai.errors import openai_body
from app.service import Generation, Step

_DONE = b"data: [DONE]\n\n"

Chunks = Sequence[Mapping[str, Any]]


def event_stream(
    request: Request,
    generations: Sequence[Generation],
    chunks: Callable[[int, Step], Chunks],
    last_chunks: Callable[[], Chunks],
) -> Response:
    """A response of chunks: those of each step of a generation, then the last ones."""
    return events.event_stream(
        request,
        generations,
        lambda index, step: _encoded(chunks(index, step)),
        end=lambda: _encoded(last_chunks()) + _DONE,
        error_event=lambda problem: event(openai_body(problem), prefix="event: error\ndata: "),
    )


def _encoded(chunks: Chunks) -> bytes:
    return b"".join(map(event, chunks))
