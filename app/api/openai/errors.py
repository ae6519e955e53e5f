"""Problems in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from typing import Any

from app.api.http.problems import Problem

_PATHS = ("/v1/", "/chat/completions", "/completions", "/embeddings")

# Kind → type and code.
_NAMES = {
    "unauthorized": ("invalid_request_error", "invalid_api_key"),
    "unknown_model": ("invalid_request_error", "model_not_found"),
    "too_long": ("invalid_request_error", "context_length_exceeded"),
    "overloaded": ("rate_limit_error", "rate_limit_exceeded"),
    "generation": ("server_error", "generation_failed"),
    "internal": ("server_error", None),
    "shutting_down": ("service_unavailable_error", "shutting_down"),
    "loading": ("service_unavailable_error", "model_loading"),
}


def is_openai(path: str) -> bool:
    """Whether clients of this path expect OpenAI's shapes."""
    return path.startswith(_PATHS)


def openai_status(problem: Problem) -> int:
    """OpenAI answers every mistake of the request's body with 400."""
    return 400 if problem.status == 422 or problem.kind == "unknown_context" else problem.status


def openai_body(problem: Problem) -> dict[str, Any]:
    """The body of an error, or the data of an error event."""
    kind, code = _NAMES.get(problem.kind, ("invalid_request_error", None))
    return {"error": {"message": problem.message, "type": kind, "param": problem.field, "code": code}}
