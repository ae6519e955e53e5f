"""Cancellation of work when its client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request

from app.api.http.answering import SHUTTING_DOWN, TIMED_OUT, deadline_of
from app.api.http.problems import ApiError

T = TypeVar("T")

_MAX_WAIT = 1e6  # seconds: the event loop rejects infinity


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` for a request whose body has been read, and cancel it on a disconnect.

    Raises:
        ClientDisconnect: The client has disconnected.
        ApiError: REQUEST_TIMEOUT has passed; or the server shuts down, and SHUTDOWN_GRACE has passed.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_disconnected(request))
    try:
        await asyncio.wait(
            (working, leaving),
            return_when=asyncio.FIRST_COMPLETED,
            timeout=max(0.0, min(deadline_of(request.scope) - anyio.current_time(), _MAX_WAIT)),
        )
        if not working.done():
            raise ClientDisconnect if leaving.done() else ApiError(TIMED_OUT)
        return await working
    except asyncio.CancelledError:
        raise ApiError(SHUTTING_DOWN) from None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _until_disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
