"""Errors of the Ollama dialect."""

from __future__ import annotations

from typing_extensions import TypedDict

from app.api.dialect import ErrorFormat, Problem


class ErrorReply(TypedDict):
    """Reason for a rejected or failed request. In a stream it is the last line."""

    error: str


def ollama_status(problem: Problem) -> int:
    """Ollama's status for invalid bodies is 400."""
    return 400 if problem.status == 422 else problem.status


def ollama_body(problem: Problem) -> ErrorReply:
    return {"error": problem.message}


ERRORS = ErrorFormat(ErrorReply, ollama_body, ollama_status)
