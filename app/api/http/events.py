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
# Line breaks of Unicode. Some clients split streams there.
_LINE_BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


def json_line(data: Any) -> str:
    """Encode a value as JSON without line breaks."""
    text = _encode(data)
    return text if text.isascii() else text.translate(_LINE_BREAKS)


def event(data: Any, *, prefix: str = "data: ") -> bytes:
    """Encode an event; ``prefix``: may contain a line with its name."""
    return f"{prefix}{json_line(data)}\n\n".encode("utf-8", "replace")


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
