"""A streaming HTTP client with little overhead, because it shares cores with the measured server."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import httptools

_TIMEOUT = 900.0  # seconds for one answer
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class BenchError(Exception):
    """A measurement failed or is not comparable. The message gives the reason."""


@dataclass
class Timing:
    """Times and contents of one request. `Server.read` derives the last four figures from ``received``.

    Attributes:
        sent_at: Time of sending. All times are seconds of ``time.perf_counter``.
        received: Arrival time and bytes of each part of the body.
        pieces_at: Arrival time of each piece of text. A piece may hold several tokens.
        text: The answer.
        prompt_tokens: Prompt length as counted by the server; 0 until the end of the stream.
        generated_tokens: Answer length as counted by the server; 0 until the end of the stream.
        answered: Set on arrival of the first part of the body.
    """

    sent_at: float = 0.0
    received: list[tuple[float, bytes]] = field(default_factory=list)
    pieces_at: list[float] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ttft(self) -> float:
        """Time to first token, in seconds."""
        return self.pieces_at[0] - self.sent_at

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies at the client, in seconds."""
        return [b - a for a, b in itertools.pairwise(self.pieces_at)]

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first piece."""
        return (self.generated_tokens - 1) / (self.pieces_at[-1] - self.pieces_at[0])


class _Stream(asyncio.Protocol):
    """Protocol for one answer. httptools calls the ``on_`` methods."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._parser = httptools.HttpResponseParser(self)
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._timing.received.append((time.perf_counter(), body))
        self._timing.answered.set()

    def on_message_complete(self) -> None:
        if not self.done.done():
            self.done.set_result(self._parser.get_status_code())

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(BenchError(f"the stream ended early: {error}"))


async def exchange(
    url: str, path: str, fields: dict[str, Any], timing: Timing, headers: Mapping[str, str] = NO_HEADERS
) -> None:
    """Post ``fields`` as JSON and receive the answer into ``timing``. Cancellation closes the connection.

    Raises:
        BenchError: The status is not 200, the answer is incomplete, or it takes more than 15 minutes.
    """
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    body = json.dumps(fields).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        + "\r\n"
    )
    transport, stream = await asyncio.get_running_loop().create_connection(
        lambda: _Stream(timing), parts.hostname, parts.port
    )
    timing.sent_at = time.perf_counter()
    transport.write(head.encode() + body)
    try:
        status = await asyncio.wait_for(stream.done, _TIMEOUT)
    except asyncio.TimeoutError:
        raise BenchError(f"{url}{path}: no complete answer in {_TIMEOUT:.0f} s") from None
    finally:
        transport.close()
    if status != 200:
        answer = b"".join(body for _, body in timing.received).decode("utf-8", "replace")
        raise BenchError(f"{url}{path}: status {status}: {answer}")
