"""Connections that the server closes, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import Any, cast

import anyio
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from app.api.http.connection import Connection, ConnectionLimits, Connections

pytestmark = pytest.mark.anyio

LIMITS = ConnectionLimits(most=9, per_address=None, read_timeout=0.3, write_timeout=0.3)
GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
    body = b"a" * 8192
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize(
    "last",
    [b"GET /half", b"no HTTP\r\n\r\n"],
    ids=["a head that does not end", "a malformed request"],
)
async def test_a_connection_is_cut_if_its_client_does_not_read_the_rest(last: bytes) -> None:
    """The rest is too small to pause the response, which has a time limit of its own."""
    http = cast(Any, partial(Connection, Connections(LIMITS)))
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=http, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve())
    with anyio.fail_after(60):
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        address = server.servers[0].sockets[0].getsockname()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(address)
            while not server.server_state.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            [connection] = server.server_state.connections
            n_responses = 0
            while not connection.transport.get_write_buffer_size():
                n_responses += 1
                client.sendall(GET)
                while server.server_state.total_requests < n_responses:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                await asyncio.sleep(0.001)
            client.sendall(last)
            while connection in server.server_state.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert not connection.flow.write_paused
    server.should_exit = True
    await serving
