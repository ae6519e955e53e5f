"""Errors as ``/token_stream`` and the operational routes answer them: ``{"error", "error_type"}``."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app import service


class ApiError(Exception):
    """A request that is refused before the service sees it."""

    def __init__(self, status: int, error_type: str, message: str) -> None:
        super().__init__(message)
        self.status, self.error_type, self.message = status, error_type, message


# What the service raises → status and error_type.
_STATUS: dict[type[service.ServiceError], tuple[int, str]] = {
    service.UnknownContext: (404, "unknown_context"),
    service.BadRequest: (422, "validation"),
    service.Overloaded: (429, "overloaded"),
    service.GenerationFailed: (500, "generation"),
    service.Loading: (503, "loading"),
}
# Seconds after which trying again makes sense.
_RETRY_AFTER = {429: "1", 503: "2"}


def body_of(error: service.ServiceError) -> dict[str, str]:
    """The JSON body that tells a service error."""
    message = f"{error.field}: {error}" if error.field else str(error)
    return {"error": message, "error_type": _STATUS[type(error)][1]}


def service_error(_request: Request, error: Exception) -> Response:
    """Answer what the service refused."""
    assert isinstance(error, service.ServiceError)
    status = _STATUS[type(error)][0]
    headers = {"Retry-After": _RETRY_AFTER[status]} if status in _RETRY_AFTER else None
    return JSONResponse(body_of(error), status, headers=headers)


def api_error(_request: Request, error: Exception) -> Response:
    """Answer what was refused before the service saw it."""
    assert isinstance(error, ApiError)
    # Of a body that was too long nobody reads the rest: the connection cannot be used again.
    headers = {"Connection": "close"} if error.status == 413 else None
    body = {"error": error.message, "error_type": error.error_type}
    return JSONResponse(body, error.status, headers=headers)


def http_error(request: Request, error: Exception) -> Response:
    """Answer an unknown path or method."""
    assert isinstance(error, HTTPException)
    message = {
        404: f"there is nothing at {request.url.path}",
        405: f"{request.method} is not allowed at {request.url.path}",
    }.get(error.status_code, error.detail)
    error_type = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http")
    body = {"error": message, "error_type": error_type}
    return JSONResponse(body, error.status_code, headers=error.headers)


def client_gone(_request: Request, _error: Exception) -> Response:
    """End a request whose client hung up before its body was read; nobody receives this."""
    return Response(status_code=400)


def server_error(_request: Request, _error: Exception) -> Response:
    """Answer a fault of ours; the log has the rest."""
    return JSONResponse({"error": "the server failed; its log says why", "error_type": "internal"}, 500)


def complaint(error: ValidationError) -> ApiError:
    """Put pydantic's first complaints about a body into one sentence that names field and value."""
    errors = error.errors(include_url=False)
    if errors[0]["type"] == "json_invalid":
        return ApiError(400, "malformed_json", f"the body is not valid JSON: {errors[0]['ctx']['error']}")
    return ApiError(422, "validation", "; ".join(_one(e) for e in errors[:5]))


def _one(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"]) or "body"
    if error["type"] == "extra_forbidden":
        return f"{field}: there is no such field"
    if error["type"] == "missing":
        return f"{field}: is required"
    message = (
        error["msg"].removeprefix("Value error, ").replace("Input ", "").replace(" after validation", "")
    )
    if not error["loc"]:  # of several fields: it names them itself
        return str(message)
    message = f"{field}: {message[0].lower()}{message[1:]}"
    if error["type"] == "too_long":  # it says how long the value is
        return message
    value = json.dumps(error["input"], ensure_ascii=False, default=str)
    return f"{message}, not {value if len(value) <= 60 else value[:57] + '...'}"
