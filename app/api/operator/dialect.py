"""The routes for operators and browsers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from app.api.dialect import EVENTS, JSON, RETRY_AFTER, Dialect, Endpoint, Operation, Reply, causes
from app.api.http.errors import ERRORS
from app.api.operator import ops, pages, stats
from app.api.operator.replies import Contexts, Failed, Health, Loading, Ready, Stats
from app.config.settings import Settings

_PAGES = "Pages"

_CONTEXTS = Operation(
    method="GET",
    path="/contexts",
    endpoint=ops.contexts,
    summary="List the contexts",
    replies={200: Reply("The contexts.", {JSON: Contexts})},
    errors=causes(500),
)

_HEALTH = Operation(
    method="GET",
    path="/health",
    endpoint=ops.health,
    summary="Liveness",
    replies={
        200: Reply("The process serves requests.", {JSON: Health}),
        503: Reply("The engine or the embedding model failed.", {JSON: Failed}, RETRY_AFTER),
    },
    errors=causes(500),
    is_open=True,
)

_READY = Operation(
    method="GET",
    path="/ready",
    endpoint=ops.ready,
    summary="Readiness",
    replies={
        200: Reply("The model is loaded.", {JSON: Ready}),
        503: Reply("The model is loading, or a model failed.", {JSON: Loading | Failed}, RETRY_AFTER),
    },
    errors=causes(500),
    is_open=True,
)

# SageMaker's path.
_PING = replace(_READY, path="/ping", summary="Readiness, for SageMaker")


def _has_metrics(settings: Settings) -> bool:
    """Whether metrics have no address of their own."""
    return settings.prometheus_http_address is None


_METRICS = Operation(
    method="GET",
    path="/metrics",
    endpoint=ops.metrics,
    summary="Metrics for Prometheus",
    replies={
        200: Reply(
            "The metrics, in the format of the Accept header.",
            {"text/plain": str, "application/openmetrics-text": str},
        )
    },
    errors=causes(500),
    is_served=_has_metrics,
)

_STATS = Operation(
    method="GET",
    path="/stats/events",
    endpoint=stats.events,
    summary="State of the engine and the latest requests",
    description="With `Accept: text/event-stream` an event every second, for at most "
    f"{stats.MOST_STREAMS} clients at once. Otherwise the data of one event.",
    replies={200: Reply("The state.", {JSON: Stats, EVENTS: Stats})},
    errors=causes(500) | {429: "Other clients have all streams of events."},
    is_served=_has_metrics,
)


def _for_browsers(
    path: str,
    endpoint: Endpoint,
    summary: str,
    reply: Reply,
    is_served: Callable[[Settings], bool] = lambda _settings: True,
) -> Operation:
    return Operation(
        method="GET",
        path=path,
        endpoint=endpoint,
        group=_PAGES,
        summary=summary,
        replies={200: reply},
        errors=causes(500),
        is_open=True,
        is_served=is_served,
    )


_PAGE = Reply("The page.", {"text/html": str})
_DOCUMENT = Reply("An OpenAPI 3.1 document.", {JSON: dict[str, Any]})

DIALECT = Dialect(
    name="Operation",
    description="For operators.",
    error=ERRORS,
    operations=(
        _CONTEXTS,
        _HEALTH,
        _READY,
        _PING,
        _METRICS,
        _STATS,
        _for_browsers("/", pages.page, "The page for questions", _PAGE),
        _for_browsers("/stats", pages.stats, "The page with the state of the engine", _PAGE, _has_metrics),
        *(
            _for_browsers(path, pages.swagger_ui, "Swagger UI", _PAGE)
            for path in ("/docs", "/swagger-ui", "/swagger-ui/")
        ),
        *(
            _for_browsers(path, pages.openapi, "This document", _DOCUMENT)
            for path in ("/openapi.json", "/api-docs/openapi.json")
        ),
    ),
    groups={_PAGES: "For browsers."},
    files=pages.FILES,
)
