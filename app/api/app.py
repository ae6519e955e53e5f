"""The application: routes, error handlers and the OpenAPI document of all dialects."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from app.api.dialect import Dialect, RouteTable
from app.api.http import admission, affinity, errors, sources
from app.api.http.auth import RequireKey
from app.api.http.foreign import AllowedHosts, RejectForeign
from app.api.http.observation import Observe
from app.api.http.problems import ApiError
from app.api.messages.dialect import DIALECT as MESSAGES
from app.api.ollama.dialect import DIALECT as OLLAMA
from app.api.openai.dialect import DIALECT as OPENAI
from app.api.openapi import document
from app.api.operator.dialect import DIALECT as OPERATOR
from app.api.rerank.dialect import DIALECT as RERANK
from app.api.responses.dialect import DIALECT as RESPONSES
from app.api.sagemaker.dialect import DIALECT as SAGEMAKER
from app.api.systemone.dialect import DIALECT as SYSTEM_ONE
from app.api.tgi.dialect import DIALECT as TGI
from app.api.tokenstream.dialect import DIALECT as TOKENSTREAM
from app.config.addresses import split_address
from app.config.settings import Settings
from app.service import Service, ServiceError
from app.telemetry.tracing import Tracing

# A new dialect is a package and a line here. Earlier dialects match first.
DIALECTS: tuple[Dialect, ...] = (
    TOKENSTREAM,
    OPENAI,
    RESPONSES,
    MESSAGES,
    OLLAMA,
    RERANK,
    SYSTEM_ONE,
    TGI,
    SAGEMAKER,
    OPERATOR,
)

Lifespan = Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]


def route_table(settings: Settings) -> RouteTable:
    return RouteTable(DIALECTS, settings, default=errors.ERRORS, middleware=admission.middleware)


def api_document(settings: Settings) -> dict[str, Any]:
    """The OpenAPI document of a server with these settings."""
    return document(route_table(settings).dialects, needs_key=settings.needs_key)


def _encoded_document(settings: Settings) -> bytes:
    return json.dumps(api_document(settings), ensure_ascii=False).encode()


def create_app(
    service: Service, lifespan: Lifespan | None = None, tracing: Tracing | None = None
) -> Starlette:
    """Create the application for a service, whose model may still be loading."""
    settings = service.settings
    table = route_table(settings)
    middleware = [_cors(settings.cors_allow_origin)] if settings.cors_allow_origin else []
    hosts = AllowedHosts(split_address(settings.http_address)[0], settings.allowed_hosts)
    middleware.append(Middleware(RejectForeign, hosts=hosts, origins=settings.cors_allow_origin))
    if settings.needs_key:
        key = settings.api_key.get_secret_value() if settings.api_key else None
        middleware.append(Middleware(RequireKey, key=key, keys=service.keys, is_open=table.is_open))
    app = Starlette(
        routes=table.routes,
        exception_handlers={
            ServiceError: errors.service_error,
            ApiError: errors.api_error,
            HTTPException: errors.http_error,
            ClientDisconnect: errors.client_gone,
            Exception: errors.server_error,
        },
        middleware=middleware,
        lifespan=lifespan or _no_lifespan,
    )
    # Outside of Starlette's own layers, which respond to unexpected exceptions.
    app.middleware_stack = Observe(
        app.build_middleware_stack(), service.metrics, tracing, logs_content=settings.log_content == "on"
    )
    app.state.service = service
    app.state.table = table
    app.state.is_stopping = lambda: False  # endless responses then end
    app.state.n_stats_streams = 0
    app.state.document = functools.cache(lambda: _encoded_document(settings))
    return app


def _cors(origins: Sequence[str]) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=(
            sources.HEADER,
            sources.WAITING_HEADER,
            affinity.HEADER,
            "Retry-After",
            "X-Request-ID",
        ),
        allow_private_network=True,
    )


@contextlib.asynccontextmanager
async def _no_lifespan(_app: Starlette) -> AsyncIterator[None]:
    yield
