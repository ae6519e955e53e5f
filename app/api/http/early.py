"""A stream of events that begins before its answer, while the model of the request loads."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Send

from app.api.dialect import EVENTS
from app.api.http import answering

_HEADERS = [
    (b"content-type", f"{EVENTS}; charset=utf-8".encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
_COMMENT = b": keep-alive\n\n"


class EarlyStream:
    """Sends comments before the response of a request, and then the response without its head.

    An error response becomes an event, because the status has been sent.

    Attributes:
        is_begun: Whether a comment has been sent.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_begun = False
        self._failure: bytearray | None = None

    async def stay_alive(self) -> None:
        """Send comments until it is cancelled; before the first one, the head of a stream."""
        while True:
            await asyncio.sleep(answering.KEEP_ALIVE_AFTER)
            if not self.is_begun:
                self.is_begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await self._send({"type": "http.response.body", "body": _COMMENT, "more_body": True})

    async def send(self, message: Message) -> None:
        """Send a message of the response, after a comment."""
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                self._failure = bytearray()
            return
        if self._failure is None:
            await self._send(message)
            return
        self._failure += message.get("body", b"")
        if not message.get("more_body"):
            event = b"event: error\ndata: " + bytes(self._failure) + b"\n\n"
            await self._send({"type": "http.response.body", "body": event})
