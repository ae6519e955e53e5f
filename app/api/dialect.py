"""A dialect: its operations and the format of its errors. Docs: docs/dialect.md."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import ASGIApp

if TYPE_CHECKING:
    from app.config.settings import Settings

Endpoint = Callable[[Request], Awaitable[Response]]

JSON = "application/json"
EVENTS = "text/event-stream"
NDJSON = "application/x-ndjson"

# Causes of error statuses that all dialects share.
CAUSES = {
    400: "The body is not valid JSON.",
    404: "The context or the model does not exist.",
    408: "The body did not arrive within READ_TIMEOUT.",
    413: "The body is longer than MAX_BODY_BYTES.",
    415: "The Content-Type is missing, or not application/json.",
    422: "A field is missing, unknown or invalid, or the request has too many tokens.",
    424: "Generation failed.",
    429: "MAX_CONCURRENT_REQUESTS requests are running or waiting.",
    500: "Internal server error.",
    501: "The server was started without an embedding model or knowledge base.",
    503: "The model is loading, or cannot be loaded.",
    504: "REQUEST_TIMEOUT has passed.",
}

RETRY_AFTER = {"Retry-After": "Seconds to wait before the next attempt."}  # description of the header


def causes(*statuses: int) -> dict[int, str]:
    return {status: CAUSES[status] for status in statuses}


Kind = Literal[
    "body_too_large",
    "forbidden",
    "foreign_host",
    "foreign_origin",
    "generation",
    "http",
    "internal",
    "knowledge",
    "load_failed",
    "loading",
    "malformed_json",
    "method_not_allowed",
    "not_found",
    "not_offered",
    "overloaded",
    "read_timeout",
    "request_timeout",
    "shutting_down",
    "too_long",
    "unauthorized",
    "unknown_context",
    "unknown_model",
    "unsupported_media_type",
    "validation",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """The reason for an error response, independent of the dialect.

    Attributes:
        status: HTTP status. A dialect may map ``kind`` to another status.
        kind: Machine-readable cause.
        message: Error message for the author of the request. It names the field, the value and the limit.
        field: The invalid field, if any.
        retry_after: Seconds to wait before the next attempt, with status 429 or 503.
    """

    status: int
    kind: Kind
    message: str
    field: str | None = None
    retry_after: int = 2

    @property
    def headers(self) -> dict[str, str]:
        """Response headers."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(self.retry_after)} if self.status in (429, 503) else {}


@dataclass(frozen=True, slots=True)
class ErrorFormat:
    """A dialect's encoding of a ``Problem``.

    Attributes:
        schema: Type of the body, for the OpenAPI document.
        body: Returns the body of the response.
        status: Returns the HTTP status.
    """

    schema: Any
    body: Callable[[Problem], Any]
    status: Callable[[Problem], int] = lambda problem: problem.status


@dataclass(frozen=True, slots=True)
class Reply:
    """Description of a successful response.

    Attributes:
        description: One sentence.
        content: Type of the body by media type. For events and NDJSON: type of each event's
            data, or of each line.
        headers: Descriptions of headers that are always present.
        may_have: Descriptions of optional headers.
    """

    description: str
    content: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    may_have: Mapping[str, str] = field(default_factory=dict)


def _always(_settings: Settings) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One route with one method, and its description in the OpenAPI document.

    Attributes:
        method: HTTP method.
        path: Starlette's path, such as ``/v1/models/{name:path}``.
        endpoint: Handles the request.
        group: Heading in the document. Default: the name of the dialect.
        summary: One line.
        description: Details, in Markdown.
        body: Type of the request body; None for no body.
        examples: Valid request bodies by title. Tests send each of them.
        replies: Successful responses by status.
        errors: Causes by error status.
        embeds: Whether its requests count as embedding requests.
        parameters: Descriptions of the path parameters by name.
        is_open: Whether the route is served without a key.
        is_served: Whether the route exists under given settings.
    """

    method: str
    path: str
    endpoint: Endpoint
    group: str = ""
    summary: str
    description: str = ""
    body: Any = None
    examples: Mapping[str, Any] = field(default_factory=dict)
    replies: Mapping[int, Reply]
    errors: Mapping[int, str]
    parameters: Mapping[str, str] = field(default_factory=dict)
    embeds: bool = False
    is_open: bool = False
    is_served: Callable[[Settings], bool] = _always


def _no_middleware(_operation: Operation) -> Sequence[Middleware]:
    return ()


@dataclass(frozen=True, slots=True)
class Dialect:
    """A family of routes with one format of errors.

    Attributes:
        name: Heading of its operations in the document.
        description: One sentence below that heading.
        error: Error format of its operations, and of unknown paths below its paths.
        operations: In order of matching.
        groups: Other headings and their descriptions.
        files: Static files by path. They are served without a key.
        schemas: Types mentioned in descriptions that are not in a body.
    """

    name: str
    description: str
    error: ErrorFormat
    operations: Sequence[Operation]
    groups: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, ASGIApp] = field(default_factory=dict)
    schemas: Sequence[Any] = ()


class RouteTable:
    """The routes of all dialects, and the dialect of each path."""

    def __init__(
        self,
        dialects: Sequence[Dialect],
        settings: Settings,
        default: ErrorFormat,
        middleware: Callable[[Operation], Sequence[Middleware]] = _no_middleware,
    ) -> None:
        """Combine the dialects.

        Args:
            dialects: In order of matching.
            settings: They determine the operations.
            default: Error format of paths without a dialect.
            middleware: Returns the middleware of an operation's route.
        """
        self.dialects = [
            (dialect, [operation for operation in dialect.operations if operation.is_served(settings)])
            for dialect in dialects
        ]
        self._default = default
        self._routes = [
            (
                Route(
                    operation.path,
                    operation.endpoint,
                    methods=[operation.method],
                    middleware=middleware(operation),
                ),
                dialect,
            )
            for dialect, operations in self.dialects
            for operation in operations
        ]
        self._files = {path: files for dialect in dialects for path, files in dialect.files.items()}
        self._open = {
            (operation.method, operation.path)
            for _, operations in self.dialects
            for operation in operations
            if operation.is_open
        }
        # Matching all routes takes 0.1 ms. Without parameters, a path determines its route.
        fixed = [(method, route.path) for route, _ in self._routes for method in route.methods or ()]
        self._known = {
            key: (self._template(*key), self._error_format(*key)) for key in fixed if "{" not in key[1]
        }

    @property
    def routes(self) -> list[BaseRoute]:
        routes: list[BaseRoute] = [route for route, _ in self._routes]
        return routes + [Mount(path, files) for path, files in self._files.items()]

    def is_open(self, method: str, path: str) -> bool:
        """Whether a request is served without a key."""
        method = "GET" if method == "HEAD" else method
        if (method, path) in self._open:
            return True
        return method == "GET" and any(path.startswith(f"{folder}/") for folder in self._files)

    def methods(self, path: str) -> list[str]:
        """The methods of all operations at a path, sorted."""
        scope = {"type": "http", "method": "", "path": path}
        routes = [route for route, _ in self._routes if route.matches(scope)[0] is not Match.NONE]
        return sorted({method for route in routes for method in route.methods or ()})

    def template(self, method: str, path: str) -> str:
        """The path of a request's route, with the names of its parameters; ``unknown`` without a route.

        Paths of clients would give metrics an unlimited number of series.
        """
        known = self._known.get((method, path))
        return known[0] if known else self._template(method, path)

    def _template(self, method: str, path: str) -> str:
        scope = {"type": "http", "method": method, "path": path}
        matches = [(route.matches(scope)[0], route.path) for route, _ in self._routes]
        for wanted in (Match.FULL, Match.PARTIAL):
            if (matched := next((name for match, name in matches if match is wanted), None)) is not None:
                return matched
        return next((folder for folder in self._files if path.startswith(f"{folder}/")), "unknown")

    def error_format(self, method: str, path: str) -> ErrorFormat:
        """The error format of a request: of its operation, else of the only dialect with this path.

        For an unknown path, that of the first dialect with a path that begins with the same segment.
        """
        known = self._known.get((method, path))
        return known[1] if known else self._error_format(method, path)

    def _error_format(self, method: str, path: str) -> ErrorFormat:
        scope = {"type": "http", "method": method, "path": path}
        matches = [(route.matches(scope)[0], dialect) for route, dialect in self._routes]
        formats = [dialect.error for match, dialect in matches if match is Match.FULL]
        if formats:
            return formats[0]
        owners = {dialect.name: dialect.error for match, dialect in matches if match is Match.PARTIAL}
        if owners:
            return owners.popitem()[1] if len(owners) == 1 else self._default
        begin = path.split("/")[1]
        related = (dialect.error for route, dialect in self._routes if route.path.split("/")[1] == begin)
        return next(related, self._default)
