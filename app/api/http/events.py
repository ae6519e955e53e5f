"""Server-sent events."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request

from app.api.dialect import EVENTS, Problem
from app.api.http.answering import StreamedAnswer
from app.service import Generation, Step

# One encoder for all events: json.dumps with an option creates a new one at each call.
_encode = json.JSONEncoder(ensure_ascii=False).encode


def event(data: Any, *, prefix: str = "data: ") -> bytes:
    """Encode an event; ``prefix``: may contain a line with its name."""
    return f"{prefix}{_encode(data)}\n\n".encode("utf-8", "replace")


def event_stream(
    request: Request,
    generations: Sequence[Generation],
    encode: Callable[[int, Step], bytes],
    *,
    end: Callable[[], bytes] = bytes,
    error_event: Callable[[Problem], bytes],
    keep_alive: bytes = b": keep-alive\n\n",
) -> StreamedAnswer:
    """A response of events.

    Args:
        request: The request.
        generations: Sources of the events, closed when the response ends.
        encode: Makes the events of a step, from the index of a generation and the step.
        end: Makes the last events of a complete stream.
        error_event: Encodes the last event of a failed stream.
        keep_alive: Comment for a silent connection.
    """
    return StreamedAnswer(
        request,
        generations,
        encode,
        end=end,
        media_type=EVENTS,
        error_part=error_event,
        keep_alive=keep_alive,
    )
