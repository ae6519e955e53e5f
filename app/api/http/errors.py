"""Errors as HTTP responses, in the format of the dialect of the path."""

from __future__ import annotations

from typing import Annotated

import anyio
from pydantic import Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict

from app.api.dialect import ErrorFormat, Kind, Problem, RouteTable
from app.api.http.connection import DISCARD
from app.api.http.observation import CLIENT_GONE
from app.api.http.problems import ApiError, problem_of
from app.service import ServiceError
from app.telemetry.request import current


class ErrorBody(TypedDict):
    """Reason for a rejected or failed request."""

    error: Annotated[str, Field(description="Error message. It names the field, the value and the limit.")]
    error_type: Annotated[str, Field(description="Machine-readable cause.")]


def error_body(problem: Problem) -> ErrorBody:
    return {"error": problem.message, "error_type": problem.kind}


# Limits of a body that is read only to be discarded.
_DISCARD_BYTES = 64 << 20
_DISCARD_SECONDS = 10.0

ERRORS = ErrorFormat(ErrorBody, error_body)
"""Error format of Tokenstream's route, the operator's routes, and unknown paths."""


class ErrorResponse(JSONResponse):
    """A response that arrives even if the body of its request was not read.

    To close a connection with unread data resets it, and the client loses the response. So the rest of the
    body is discarded before the close, within limits.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_arriving(scope):
            await super().__call__(scope, receive, send)
            return
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await _discard(scope, receive)
        await send({"type": "http.response.body", "body": b""})


def _is_arriving(scope: Scope) -> bool:
    """Whether the client may be sending a body that was not read."""
    headers = Headers(scope=scope)
    if scope.get("state", {}).get("is_body_read"):
        return False
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


async def _discard(scope: Scope, receive: Receive) -> None:
    state = scope.setdefault("state", {})
    state[DISCARD] = _DISCARD_BYTES
    with anyio.move_on_after(_DISCARD_SECONDS):
        while state[DISCARD] > 0 and (await receive()).get("more_body"):
            pass


def internal() -> Problem:
    """An unexpected exception. The server's log has its traceback."""
    return Problem(
        500, "internal", f"internal server error; see request_id={current().id} in the server's log"
    )


def respond(scope: Scope, problem: Problem) -> Response:
    """Encode a problem in the error format of the requested path."""
    table: RouteTable = scope["app"].state.table
    error = table.error_format(scope["method"], scope["path"])
    current().error = problem.kind
    return ErrorResponse(error.body(problem), error.status(problem), headers=problem.headers)


# The handlers are coroutines: Starlette calls functions on a thread, which takes longer than they do.


async def service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return respond(request.scope, problem_of(error))


async def api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return respond(request.scope, error.problem)


async def http_error(request: Request, error: Exception) -> Response:
    """Respond to an unknown path or method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    kinds: dict[int, tuple[Kind, str]] = {
        404: ("not_found", f"{path} does not exist"),
        405: ("method_not_allowed", f"{request.method} is not allowed for {path}"),
    }
    kind, message = kinds.get(error.status_code, ("http", error.detail))
    response = respond(request.scope, Problem(error.status_code, kind, message))
    response.headers.update(error.headers or {})
    table: RouteTable = request.app.state.table
    # Starlette names only the methods of the first route with this path.
    if error.status_code == 405 and (methods := table.methods(request.scope["path"])):
        response.headers["Allow"] = ", ".join(methods)
    return response


async def client_gone(_request: Request, _error: Exception) -> Response:
    """End a request whose client disconnected before its body was read. The response is not delivered."""
    return Response(status_code=CLIENT_GONE)


async def server_error(request: Request, _error: Exception) -> Response:
    """Respond to an unexpected exception. Uvicorn logs it."""
    return respond(request.scope, internal())
