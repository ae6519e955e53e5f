"""Errors of the TGI dialect, with TGI's statuses and messages."""

from __future__ import annotations

from typing_extensions import TypedDict

from app.api.dialect import ErrorFormat, Kind, Problem

# Status, error_type and start of the message by kind, if they differ from those of the Problem.
_NAMES: dict[Kind, tuple[int, str, str]] = {
    "validation": (422, "validation", "Input validation error: "),
    "too_long": (422, "validation", "Input validation error: "),
    "generation": (424, "generation", "Request failed during generation: "),
    "internal": (500, "incomplete_generation", "Incomplete generation: "),
}


TOO_LONG = 413


class ErrorResponse(TypedDict):
    """Reason for a rejected or failed request."""

    error: str
    error_type: str


def tgi_status(problem: Problem) -> int:
    if problem.status == TOO_LONG:  # of /embed, as in Text Embeddings Inference
        return TOO_LONG
    return _NAMES[problem.kind][0] if problem.kind in _NAMES else problem.status


def tgi_body(problem: Problem) -> ErrorResponse:
    """The body of an error, or the data of an error event."""
    if problem.kind == "overloaded":
        return {"error": "Model is overloaded", "error_type": "overloaded"}
    _, kind, begin = _NAMES.get(problem.kind, (problem.status, problem.kind, ""))
    return {"error": begin + problem.message, "error_type": kind}


ERRORS = ErrorFormat(ErrorResponse, tgi_body, tgi_status)
