"""Errors of the Messages API."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from app.api.dialect import ErrorFormat, Problem

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
    request_id: None


def messages_status(problem: Problem) -> int:
    """Anthropic's status for invalid bodies is 400."""
    return 400 if problem.status == 422 else problem.status


def messages_body(problem: Problem) -> MessagesError:
    status = messages_status(problem)
    kind = _TYPES.get(status, "api_error" if status >= _SERVER_ERROR else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": problem.message}, "request_id": None}


ERRORS = ErrorFormat(MessagesError, messages_body, messages_status)
