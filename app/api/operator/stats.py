"""``/stats/events``: figures of the engine and the latest requests, once or every second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.dialect import EVENTS, Problem
from app.api.http.events import event
from app.api.http.problems import ApiError
from app.api.operator.replies import Stats
from app.service import Service

MOST_STREAMS = 8
_SECONDS = 1.0  # between events
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def events(request: Request) -> Response:
    """Respond with events if the client accepts them, otherwise with the data of one."""
    state = request.app.state
    if EVENTS not in request.headers.get("accept", ""):
        return JSONResponse(_stats(state.service, 0), headers=_HEADERS)
    if state.n_stats_streams >= MOST_STREAMS:
        message = f"{MOST_STREAMS} clients read the events of /stats; close one of them"
        raise ApiError(Problem(429, "overloaded", message, retry_after=5))
    return _Events(state)


class _Events(StreamingResponse):
    def __init__(self, state: State) -> None:
        super().__init__(_every_second(state), headers=_HEADERS, media_type=EVENTS)
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._state.n_stats_streams += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._state.n_stats_streams -= 1


async def _every_second(state: State) -> AsyncIterator[bytes]:
    """Events until the server shuts down."""
    service: Service = state.service
    known = 0
    while not state.is_stopping():
        yield event(_stats(service, known))
        known = service.metrics.latest.count
        await asyncio.sleep(_SECONDS)


def _stats(service: Service, known: int) -> Stats:
    """The state now, with the requests that ended after the first ``known`` ones."""
    return {
        "time": round(time.time(), 3),
        "model": service.model_name,
        "figures": service.metrics.engines.figures(),
        "requests": service.metrics.latest.since(known),
    }
