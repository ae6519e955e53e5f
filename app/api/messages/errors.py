"""Errors of the Messages API."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from app.api.dialect import ErrorFormat, Problem
from app.telemetry.request import current

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_SERVER_ERROR = 500


class ErrorDetail(TypedDict):
    """Reason for a rejected or failed request."""

    type: str
    message: str


class MessagesError(TypedDict):
    """An error in Anthropic's format."""

    type: Literal["error"]
    error: ErrorDetail
    request_id: str


def messages_status(problem: Problem) -> int:
    """Anthropic's status for invalid bodies is 400."""
    return 400 if problem.status == 422 else problem.status


def messages_body(problem: Problem) -> MessagesError:
    status = messages_status(problem)
    kind = _TYPES.get(status, "api_error" if status >= _SERVER_ERROR else "invalid_request_error")
    detail: ErrorDetail = {"type": kind, "message": problem.message}
    return {"type": "error", "error": detail, "request_id": current().id}


ERRORS = ErrorFormat(MessagesError, messages_body, messages_status)
