"""Errors of the OpenAI dialect."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from app.api.dialect import ErrorFormat, Kind, Problem

# Type and code by kind.
_NAMES: dict[Kind, tuple[str, str | None]] = {
    "unauthorized": ("invalid_request_error", "invalid_api_key"),
    "unknown_model": ("invalid_request_error", "model_not_found"),
    "too_long": ("invalid_request_error", "context_length_exceeded"),
    "overloaded": ("rate_limit_error", "rate_limit_exceeded"),
    "generation": ("server_error", "generation_failed"),
    "internal": ("server_error", None),
    "shutting_down": ("service_unavailable_error", "shutting_down"),
    "load_failed": ("service_unavailable_error", "model_not_loaded"),
    "loading": ("service_unavailable_error", "model_loading"),
    "knowledge": ("service_unavailable_error", "knowledge_unavailable"),
}


class OpenAIError(TypedDict):
    """Reason for a rejected or failed request."""

    message: str
    type: str
    param: Annotated[str | None, Field(description="The invalid field.")]
    code: str | None


class OpenAIErrorResponse(TypedDict):
    """An error in OpenAI's format."""

    error: OpenAIError


def openai_status(problem: Problem) -> int:
    """OpenAI's status for invalid bodies is 400."""
    return 400 if problem.status == 422 or problem.kind == "unknown_context" else problem.status


def openai_body(problem: Problem) -> OpenAIErrorResponse:
    kind, code = _NAMES.get(problem.kind, ("invalid_request_error", None))
    return {"error": {"message": problem.message, "type": kind, "param": problem.field, "code": code}}


ERRORS = ErrorFormat(OpenAIErrorResponse, openai_body, openai_status)
