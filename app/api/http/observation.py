"""Request ids, log lines, metrics and traces of all requests."""

from __future__ import annotations

import re
import uuid

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dialect import RouteTable
from app.telemetry import request as requests
from app.telemetry.metrics import Metrics
from app.telemetry.request import RequestRecord
from app.telemetry.tracing import Tracing, trace_id

logger = structlog.get_logger("tokenstream.request")

_HEADER = b"x-request-id"
# Other ids are replaced: they would forge or split log lines.
_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
# Requested every few seconds by probes and by Prometheus, or several times per page.
_ROUTINE = frozenset({"/health", "/ready", "/ping", "/metrics", "/stats/events", "/ui", "/docs"})
CLIENT_GONE = 499  # nginx's status for a client that disconnected before the response


class Observe:
    """Outermost layer: gives each request an id and reports it at its end."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None, *, logs_content: bool
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._logs_content = logs_content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_id(scope), scope["method"], self._logs_content)
        # Not reset at the end: the server logs an exception in this task afterwards.
        requests.begin(record)
        structlog.contextvars.bind_contextvars(request_id=record.id)
        span = None
        if self._tracing is not None and scope["path"] not in _ROUTINE:
            span = self._tracing.begin(record, Headers(scope=scope))
            structlog.contextvars.bind_contextvars(trace_id=trace_id(span))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], (_HEADER, record.id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            table: RouteTable = scope["app"].state.table
            record.route = table.template(scope["method"], scope["path"])
            if record.status is None:
                record.status = CLIENT_GONE
            self._report(record)
            if self._tracing is not None and span is not None:
                self._tracing.end(span, record)
            # They hold their model. Its timers and its loading keep the context of a request, and idle
            # connections keep the scope of their last one.
            record.answers.clear()

    def _report(self, record: RequestRecord) -> None:
        self._metrics.on_request(record)
        fields = record.fields()
        if record.method in ("POST", "PUT"):
            self._metrics.latest.add(fields)
        level = "debug" if record.route in _ROUTINE else "info"
        getattr(logger, level)("request", **fields)


def _id(scope: Scope) -> str:
    """The client's id of the request, or a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex
