"""Parts of a response body, sent without a task switch."""

from __future__ import annotations

import time
import types
from collections.abc import Coroutine, Generator, Sequence
from typing import Any

from anyio.abc import TaskGroup
from starlette.types import Send


class Writer:
    """Sends a response from callbacks of the event loop.

    ``send`` of an ASGI server returns at once as long as the client reads. If the client is too slow, a task
    continues and further parts collect. They are at most the rest of one answer.
    The headers are sent with the first part.

    Attributes:
        is_started: Whether the headers are sent.
        is_blocked: Whether parts wait for the client.
        written_at: Time of the last part, as ``time.monotonic``.
    """

    def __init__(self, send: Send, headers: Sequence[tuple[bytes, bytes]], tasks: TaskGroup) -> None:
        """``tasks`` run while the client is too slow."""
        self._send = send
        self._headers = headers
        self._tasks = tasks
        self._held = bytearray()
        self.is_started = False
        self.is_blocked = False
        self.written_at = time.monotonic()

    def write(self, part: bytes) -> None:
        """Send a part, or hold it until the client has read the previous ones."""
        self.written_at = time.monotonic()
        if self.is_blocked:
            self._held += part
            return
        sending = self.send(part)
        try:
            awaited = sending.send(None)
        except StopIteration:
            return
        self.is_blocked = True
        self._tasks.start_soon(self._send_rest, sending, awaited)

    async def _send_rest(self, sending: Coroutine[Any, Any, None], awaited: Any) -> None:
        await _continued(sending, awaited)
        while self._held:
            part, self._held = bytes(self._held), bytearray()
            await self.send(part)
        self.is_blocked = False

    async def send(self, part: bytes, *, more: bool = True) -> None:
        """Send a part and wait until the client is ready for another. No part may be held."""
        if not self.is_started:
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
            self.is_started = True
        await self._send({"type": "http.response.body", "body": part, "more_body": more})


@types.coroutine
def _continued(coroutine: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, None, None]:
    """Continue a coroutine in a task. A callback has run it until it awaited ``awaited``."""
    try:
        yield awaited
        yield from coroutine
    finally:
        coroutine.close()
