"""Admission of requests: before the body is read, until the response has ended."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import anyio
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dialect import Operation
from app.api.http.auth import client_of
from app.api.http.early import EarlyFormat, EarlyStream
from app.api.http.waiting import while_connected
from app.service import Constraint, Generation, Model, Place, Prompt, Service, with_priority


def middleware(operation: Operation) -> list[Middleware]:
    """The middleware of an operation's route."""
    return [Middleware(TakePlace, embeds=operation.embeds)] if operation.body is not None else []


class TakePlace:
    """Middleware of routes whose requests have a body. A request without a place is rejected (429)."""

    def __init__(self, app: ASGIApp, *, embeds: bool) -> None:
        """``embeds``: the place is one of the embedding requests."""
        self._app = app
        self._embeds = embeds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service: Service = scope["app"].state.service
        connection = HTTPConnection(scope)
        admission = service.embedding_admission if self._embeds else service.admission
        n_bytes = connection.headers.get("content-length", "")
        client = client_of(connection)
        if priority := connection.headers.get("x-priority"):
            client = with_priority(client, priority)
        service.rates.check(client)
        with admission.enter(client, int(n_bytes) if n_bytes.isdecimal() else 0) as place:

            async def send_noting_progress(message: Message) -> None:
                # The place is free before the client has the end: its next request finds it.
                if message["type"] == "http.response.start":
                    place.begin() if message["status"] < 400 else place.leave()
                elif not message.get("more_body"):
                    place.leave()
                await (early.send if early.is_begun else send)(message)

            connection.state.early = early = EarlyStream(send)
            timeout = service.settings.request_timeout
            connection.state.place = place
            connection.state.deadline = anyio.current_time() + (math.inf if timeout is None else timeout)
            await self._app(scope, receive, send_noting_progress)


def place_of(request: Request) -> Place:
    place: Place = request.state.place
    return place


async def generate(
    request: Request,
    prompt: Prompt,
    overrides: Mapping[str, Any],
    *,
    constraint: Constraint | None = None,
    n: int = 1,
    early: EarlyFormat | None = None,
) -> list[Generation]:
    """Call :meth:`Service.generate` for a request whose body has been read.

    ``early``: the response is a stream of this format. It begins while the model loads.

    Raises:
        ServiceError: The request is rejected.
        ClientDisconnect: The client has disconnected.
    """
    service: Service = request.app.state.service
    if early is not None:
        await use_model(request, prompt, early=early)
    work = service.generate(prompt, overrides, constraint=constraint, n=n, place=place_of(request))
    return await while_connected(request, work)


async def use_model(request: Request, prompt: Prompt, *, early: EarlyFormat | None = None) -> Model:
    """The loaded model of a prompt; ``early``: format of a stream that begins while it loads.

    Raises:
        ServiceError: The request is rejected, or the model cannot be loaded.
        ClientDisconnect: The client has disconnected.
    """
    service: Service = request.app.state.service
    entry = service.entry_of(prompt)
    work = service.use(entry, place_of(request))
    if entry.is_open:
        return await work
    stream: EarlyStream = request.state.early
    beside = asyncio.ensure_future(stream.stay_alive(early)) if early is not None else None
    try:
        return await while_connected(request, work)
    finally:
        if beside is not None:
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
