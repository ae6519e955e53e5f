"""A streaming HTTP client that costs little: it shares the cores with the server that it measures."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools


@dataclass
class Timing:
    """One request: when it was sent, when each piece of text came, and the server's own figures."""

    sent_at: float
    pieces_at: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    generated_tokens: int = 0

    @property
    def ttft(self) -> float:
        """Seconds from sending to the first piece of text."""
        return self.pieces_at[0] - self.sent_at

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces of text: the inter-token latency as the client sees it."""
        return [b - a for a, b in zip(self.pieces_at, self.pieces_at[1:], strict=False)]


class _Stream(asyncio.Protocol):
    """Receives one answer; httptools calls the ``on_`` methods."""

    def __init__(self, request: bytes, timing: Timing) -> None:
        self._request = request
        self._timing = timing
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._timing.sent_at = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._timing.pieces_at.append(time.perf_counter())
        self._body += body

    def on_message_complete(self) -> None:
        if not self.done.done():
            self.done.set_result(bytes(self._body))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(f"the stream ended early: {error}"))


async def ask(url: str, fields: dict[str, Any]) -> Timing:
    """Send one request to ``/token_stream`` and read its stream to the end."""
    parts = urlsplit(url)
    body = json.dumps({**fields, "details": True}).encode()
    head = (
        f"POST /token_stream HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    timing = Timing(0.0)
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(
        lambda: _Stream(head.encode() + body, timing), parts.hostname, parts.port
    )
    text, _, figures = (await stream.done).decode().rpartition("\x1e")
    if not text:
        raise RuntimeError(f"the server answered: {figures}")
    reported = json.loads(figures)
    timing.prompt_tokens = reported["prompt_tokens"]
    timing.generated_tokens = reported["generated_tokens"]
    timing.pieces_at.pop()  # the last piece is the line of figures
    return timing
