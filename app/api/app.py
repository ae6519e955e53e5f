"""create_app(): the routes as data, what surrounds them, and the lifespan."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Route

from app.api.http import errors
from app.api.http.auth import RequireKey
from app.api.http.problems import ApiError
from app.api.openai.chat import chat_completions
from app.api.openai.completions import completions
from app.api.openai.embeddings import embeddings
from app.api.openai.models import model, models
from app.api.operations import api_document
from app.api.operator import ops
from app.api.operator.pages import page_routes
from app.api.sagemaker.dialect import invocations
from app.api.tgi.embed import embed, embed_or_generate
from app.api.tgi.generate import generate, generate_stream
from app.api.tgi.info import info
from app.api.tgi.tokens import chat_tokenize, tokenize
from app.api.tokenstream import knowledge
from app.api.tokenstream.token_stream import token_stream
from app.service import Service, ServiceError

Lifespan = Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]


def routes(*, metrics_here: bool, needs_key: bool = False) -> list[BaseRoute]:
    """All routes; ``metrics_here`` is off where /metrics has an address of its own."""
    table: list[BaseRoute] = [
        *page_routes(api_document(metrics_here=metrics_here, needs_key=needs_key)),
        Route("/token_stream", token_stream, methods=["POST"]),
        *(Route(f"{v1}/chat/completions", chat_completions, methods=["POST"]) for v1 in ("/v1", "")),
        *(Route(f"{v1}/completions", completions, methods=["POST"]) for v1 in ("/v1", "")),
        *(Route(f"{v1}/embeddings", embeddings, methods=["POST"]) for v1 in ("/v1", "")),
        Route("/v1/models", models),
        Route("/v1/knowledge", knowledge.state),
        Route("/v1/knowledge/search", knowledge.search, methods=["POST"]),
        Route("/generate", generate, methods=["POST"]),
        Route("/generate_stream", generate_stream, methods=["POST"]),
        Route("/embed", embed, methods=["POST"]),
        Route("/", embed_or_generate, methods=["POST"]),
        Route("/model/{name:path}/", embed_or_generate, methods=["POST"]),
        Route("/model/{name:path}", embed_or_generate, methods=["POST"]),
        Route("/invocations", invocations, methods=["POST"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/chat_tokenize", chat_tokenize, methods=["POST"]),
        Route("/info", info),
        Route("/v1/models/{name:path}", model),
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

    key = service.settings.api_key
    app = Starlette(
        routes=routes(
            metrics_here=service.settings.prometheus_http_address is None, needs_key=key is not None
        ),
        exception_handlers={
            ServiceError: errors.service_error,
            ApiError: errors.api_error,
            HTTPException: errors.http_error,
            ClientDisconnect: errors.client_gone,
            Exception: errors.server_error,
        },
        middleware=[Middleware(RequireKey, key=key.get_secret_value())] if key else [],
        lifespan=lifespan or nothing,
    )
    app.state.service = service
    app.state.settings = service.settings
    return app
