"""Connections: their number, and time limits for clients that neither send nor read."""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import get_remote_addr

if TYPE_CHECKING or sys.platform == "win32":
    from asyncio.sslproto import SSLProtocol
else:
    from uvloop.loop import SSLProtocol

logger = logging.getLogger("tokenstream.api")

# Maximum bytes of a request line and headers.
_MAX_HEAD = 1 << 16
# Maximum requests that wait in one connection for the response before them. Parsing one takes 0.1 ms of the
# event loop, and a read has room for thousands.
_MOST_PIPELINED = 32
# Key of a request's state: bytes of its body that are still to be discarded as they arrive.
DISCARD = "discard"
# Seconds between log lines about the same limit.
_LOG_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of connections.

    Attributes:
        most: Maximum open connections.
        per_address: Maximum open connections of one address. None: no limit.
        read_timeout: Maximum seconds from the first byte of a head to its last, and of a TLS handshake.
        write_timeout: Maximum seconds without progress while a response waits for its client.
    """

    most: int
    per_address: int | None
    read_timeout: float
    write_timeout: float


class _TooManyRequests(Exception):
    """The pipeline of a connection is full. The parser ends."""


class _Counted(Protocol):
    def drop(self) -> None:
        """Close the connection, which is idle."""


class Connections:
    """All connections of a server. Idle ones are closed when new ones need their room."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: dict[_Counted, str] = {}  # with the address
        self._per_address: Counter[str] = Counter()
        self._idle: dict[_Counted, None] = {}  # longest idle first
        self._n_closed = self._n_refused = 0  # since the last log line
        self._logged_at = -_LOG_EVERY

    def admit(self, connection: _Counted, address: str) -> bool:
        """Add a new connection. False: there is no room, and no connection is idle."""
        limits = self.limits
        if limits.per_address is not None and self._per_address[address] >= limits.per_address:
            has_room = self._close_idle(address)
            self._log(f"MAX_CONNECTIONS_PER_ADDRESS={limits.per_address}", address)
        elif len(self._open) >= limits.most:
            has_room = self._close_idle(None)
            self._log(f"MAX_CONNECTIONS={limits.most}", address)
        else:
            has_room = True
        if has_room:
            self._open[connection] = address
            self._per_address[address] += 1
            self.set_idle(connection, is_idle=True)
        return has_room

    def remove(self, connection: _Counted) -> None:
        self._idle.pop(connection, None)
        address = self._open.pop(connection, None)
        if address is not None:
            self._per_address[address] -= 1
            if not self._per_address[address]:
                del self._per_address[address]

    def set_idle(self, connection: _Counted, *, is_idle: bool) -> None:
        """Note whether a connection has no request in progress."""
        self._idle.pop(connection, None)
        if is_idle and connection in self._open:
            self._idle[connection] = None

    def _close_idle(self, address: str | None) -> bool:
        """Close the connection that is idle longest, of this address or of any."""
        for connection in self._idle:
            if address in (None, self._open[connection]):
                self.remove(connection)
                connection.drop()
                self._n_closed += 1
                return True
        self._n_refused += 1
        return False

    def _log(self, limit: str, address: str) -> None:
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY:
            logger.warning(
                "too many connections (%s): since the last such line %d idle ones were closed, %d new ones "
                "refused; the newest is from %s",
                limit,
                self._n_closed,
                self._n_refused,
                address,
            )
            self._logged_at, self._n_closed, self._n_refused = now, 0, 0


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP protocol with these limits.

    CONNECTION_IDLE (``timeout_keep_alive``) begins with the connection. uvicorn begins it with the end of the
    first response.
    """

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self.handshake: Handshake | None = None
        self._connections = connections
        self._limits = connections.limits
        self._fault = "the bytes are not a valid HTTP/1.1 request"
        self._n_head = 0  # bytes since the last complete head
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else "unknown"

    @property
    def _has_request(self) -> bool:
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.handshake is not None:  # its place is free
            self._connections.remove(self.handshake)
            self.handshake = None
        if self._connections.admit(self, self._address):
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            self._refuse(503, "Service Unavailable", "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        self._stop_head_timer()
        self._stop_write_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    # --- reading

    def data_received(self, data: bytes) -> None:
        self._n_head += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._n_head > _MAX_HEAD and self._has_request:
            self.transport.abort()  # a part of its response may be sent already
        elif self._n_head > _MAX_HEAD:
            self._refuse(431, "Request Header Fields Too Large", f"the head is longer than {_MAX_HEAD} bytes")
        elif self._head_timer is None and not self._has_request:
            self._head_timer = self.loop.call_later(self._limits.read_timeout, self._head_is_late)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._fault = f"more than {_MOST_PIPELINED} requests wait in the connection"
            raise _TooManyRequests
        self._n_head = 0
        self._stop_head_timer()
        self._connections.set_idle(self, is_idle=False)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._n_head = 0
        state = self.cycle.scope["state"]
        if state.get(DISCARD, 0) > 0:  # no task wakes up for it
            state[DISCARD] -= len(body)
        else:
            super().on_body(body)

    def _head_is_late(self) -> None:
        self._refuse(408, "Request Timeout", "the request did not arrive within READ_TIMEOUT")

    def _refuse(self, status: int, reason: str, message: str) -> None:
        """Respond without a request, in no dialect's format, and close the connection."""
        request_id = uuid.uuid4().hex
        logger.info("%s gets status %d: %s", self._address, status, message, extra={"request_id": request_id})
        self.transport.write(
            f"HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {len(message)}\r\n"
            f"X-Request-ID: {request_id}\r\nConnection: close\r\n\r\n{message}".encode()
        )
        self.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    # --- writing

    def close(self) -> None:
        """Close the connection after the rest of its responses, if the client reads them."""
        self.transport.close()
        self._start_write_timer()

    def drop(self) -> None:
        """Close the connection at once, or after the rest of its last response."""
        if self.transport.get_write_buffer_size():
            self.close()
        else:
            self.transport.abort()  # TLS would wait for the client's end

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 # uvicorn's
        """Reject bytes that are no HTTP, or too many requests."""
        if self._has_request and self.cycle.response_started:
            logger.info("the connection of %s is cut: %s", self._address, self._fault)
            self.transport.abort()  # a second response inside the body of the first
        else:
            self._refuse(400, "Bad Request", self._fault)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._has_request:
            self._connections.set_idle(self, is_idle=True)
        if self.transport.is_closing():  # after the rest of the response, if the client reads it
            self._start_write_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_timer()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._start_write_timer()

    def _start_write_timer(self) -> None:
        self._stop_write_timer()
        self._write_timer = self.loop.call_later(self._limits.write_timeout, self._cut)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _cut(self) -> None:
        logger.warning(
            "the connection of %s is cut: it read nothing for %g s (WRITE_TIMEOUT)",
            self._address,
            self._limits.write_timeout,
        )
        self.transport.abort()


class Handshake(SSLProtocol):
    """TLS of a connection. Until the end of its handshake it counts as idle.

    uvicorn's connections begin after the handshake. Clients without one would have no limit.
    """

    def __init__(self, connections: Connections, context: ssl.SSLContext, connection: Connection) -> None:
        super().__init__(
            connection.loop,
            connection,
            context,
            None,  # type: ignore[arg-type] # nothing waits for the end of the handshake
            server_side=True,
            ssl_handshake_timeout=connections.limits.read_timeout,  # type: ignore[arg-type] # a float works
        )
        connection.handshake = self
        self._connections = connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._socket = transport
        address = get_remote_addr(transport)
        if self._connections.admit(self, address[0] if address else "unknown"):
            super().connection_made(transport)
        else:
            transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.remove(self)
        super().connection_lost(exc)

    def drop(self) -> None:
        self._socket.abort()


def protocol(
    connections: Connections, context: ssl.SSLContext | None, **options: Any
) -> Connection | Handshake:
    """The protocol of a new connection; ``options``: uvicorn's."""
    connection = Connection(connections, **options)
    return connection if context is None else Handshake(connections, context, connection)
