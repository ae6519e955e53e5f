"""create_app(): the routes as data, what surrounds them, and the lifespan."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.api import errors, ops
from app.api.token_stream import token_stream
from app.service import Service, ServiceError

UI = Path(__file__).resolve().parent.parent / "ui"

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

Lifespan = Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]


class _PageFiles(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(PAGE_HEADERS)
        return response


async def page(_request: Request) -> Response:
    """Answer the browser page."""
    return FileResponse(UI / "index.html", headers=PAGE_HEADERS)


def routes(*, metrics_here: bool) -> list[BaseRoute]:
    """All routes; ``metrics_here`` is off where /metrics has an address of its own."""
    table: list[BaseRoute] = [
        Route("/", page),
        Mount("/ui", _PageFiles(directory=UI)),
        Route("/token_stream", token_stream, methods=["POST"]),
        Route("/contexts", ops.contexts),
        Route("/health", ops.health),
        Route("/ready", ops.ready),
    ]
    if metrics_here:
        table.append(Route("/metrics", ops.metrics))
    return table


def create_app(service: Service, lifespan: Lifespan | None = None) -> Starlette:
    """Make the application over a service, loaded or still loading."""

    @contextlib.asynccontextmanager
    async def nothing(_app: Starlette) -> AsyncIterator[None]:
        yield

    app = Starlette(
        routes=routes(metrics_here=service.settings.prometheus_http_address is None),
        exception_handlers={
            ServiceError: errors.service_error,
            errors.ApiError: errors.api_error,
            HTTPException: errors.http_error,
            ClientDisconnect: errors.client_gone,
            Exception: errors.server_error,
        },
        lifespan=lifespan or nothing,
    )
    app.state.service = service
    app.state.settings = service.settings
    return app
