"""Responses to clients that read late or disconnect, over real sockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from app.api.http.writer import Writer

pytestmark = pytest.mark.anyio

HEADERS = [(b"content-type", b"text/plain")]
# Larger than the buffers of a connection.
PARTS = [f"{n:08}".encode() * 32_768 for n in range(64)]


@asynccontextmanager
async def connection(app: object) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client that has sent its request to a server of this application."""
    config = uvicorn.Config(app, port=0, http="httptools", lifespan="off", log_config=None)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    try:
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await serving


async def test_parts_arrive_in_order_at_a_client_that_reads_late() -> None:
    blocked = list[bool]()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            writer = Writer(send, HEADERS, tasks)
            for part in PARTS:
                # A callback of the event loop is not a task.
                asyncio.get_running_loop().call_soon(writer.write, part)
            await asyncio.sleep(0.1)
            blocked.append(writer.is_blocked)
        await writer.send(b"end", more=False)

    with anyio.fail_after(60):
        async with connection(app) as (reader, _):
            while not blocked:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            received = await reader.read()
    assert blocked == [True]
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert _body(received) == b"".join(PARTS) + b"end"


async def test_a_disconnect_ends_a_blocked_response(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    ended = asyncio.Event()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            writer = Writer(send, HEADERS, tasks)
            for part in PARTS:
                writer.write(part)
            assert writer.is_blocked
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()
        ended.set()

    with anyio.fail_after(60):
        async with connection(app) as (_, writer):
            await asyncio.sleep(0.1)
            writer.transport.abort()
            await ended.wait()
    assert caplog.text == ""


async def test_a_response_whose_headers_wait_for_the_client_has_not_started() -> None:
    """The rest of a previous response on the connection waits. This response can still be an error."""
    is_free = asyncio.Event()

    async def send(_message: Message) -> None:
        await is_free.wait()

    async with anyio.create_task_group() as tasks:
        writer = Writer(send, HEADERS, tasks)
        writer.write(b"part")
        assert (writer.is_blocked, writer.is_started) == (True, False)
        is_free.set()
    assert writer.is_started


def _body(response: bytes) -> bytes:
    """The body of a response in chunked encoding."""
    rest, body = response.partition(b"\r\n\r\n")[2], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body
