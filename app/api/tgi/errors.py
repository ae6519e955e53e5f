"""Problems in TGI's shape: ``{"error", "error_type"}``, with its statuses and words."""

from __future__ import annotations

from app.api.http.problems import Problem

_PATHS = (
    "/generate",
    "/generate_stream",
    "/tokenize",
    "/chat_tokenize",
    "/embed",
    "/info",
    "/invocations",
    "/model/",
)

# Kind → status, error_type, and what TGI's message begins with, where they are others than /token_stream's.
_NAMES = {
    "validation": (422, "validation", "Input validation error: "),
    "too_long": (422, "validation", "Input validation error: "),
    "generation": (424, "generation", "Request failed during generation: "),
    "internal": (500, "incomplete_generation", "Incomplete generation: "),
}


def is_tgi(path: str, method: str) -> bool:
    """Whether clients of this route expect TGI's shapes."""
    return path.startswith(_PATHS) or (path == "/" and method == "POST")


def tgi_status(problem: Problem) -> int:
    """TGI's status."""
    return _NAMES[problem.kind][0] if problem.kind in _NAMES else problem.status


def tgi_body(problem: Problem) -> dict[str, str]:
    """The body of an error, or the data of an error event."""
    if problem.kind == "overloaded":
        return {"error": "Model is overloaded", "error_type": "overloaded"}
    _, kind, begin = _NAMES.get(problem.kind, (problem.status, problem.kind, ""))
    return {"error": begin + problem.message, "error_type": kind}
