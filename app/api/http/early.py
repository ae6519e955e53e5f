"""A stream that begins before its answer, while the model of the request loads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Message, Send

from app.api.dialect import EVENTS
from app.api.http import answering

_HEADERS = [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]


@dataclass(frozen=True, slots=True)
class EarlyFormat:
    """The format of a stream before its answer.

    Attributes:
        media_type: Media type of the stream.
        keep_alive: Sent after KEEP_ALIVE_AFTER seconds of silence; clients ignore it.
        failed: Encodes the body of an error response as the last part.
    """

    media_type: str
    keep_alive: bytes
    failed: Callable[[bytes], bytes]


EARLY_EVENTS = EarlyFormat(
    f"{EVENTS}; charset=utf-8", b": keep-alive\n\n", lambda body: b"event: error\ndata: " + body + b"\n\n"
)


class EarlyStream:
    """Keeps a connection alive before a response, and then sends the response without its head.

    An error response becomes the last part of the stream, because the status has been sent.

    Attributes:
        is_begun: Whether a part has been sent.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_begun = False
        self._format = EARLY_EVENTS
        self._failure: bytearray | None = None

    async def stay_alive(self, stream: EarlyFormat) -> None:
        """Send parts until it is cancelled; before the first one, the head of a stream."""
        self._format = stream
        while True:
            await asyncio.sleep(answering.KEEP_ALIVE_AFTER)
            if not self.is_begun:
                self.is_begun = True
                headers = [(b"content-type", stream.media_type.encode()), *_HEADERS]
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send({"type": "http.response.body", "body": stream.keep_alive, "more_body": True})

    async def send(self, message: Message) -> None:
        """Send a message of the response, after the first part."""
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                self._failure = bytearray()
            return
        if self._failure is None:
            await self._send(message)
            return
        self._failure += message.get("body", b"")
        if not message.get("more_body"):
            body = self._format.failed(bytes(self._failure))
            await self._send({"type": "http.response.body", "body": body})
