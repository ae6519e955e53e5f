"""What is wrong with a request, before a dialect puts it in its own shape."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app import service


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request is not answered.

    Attributes:
        status: The HTTP status of ``/token_stream``; a dialect may have another for the same kind.
        kind: What went wrong, in one word.
        message: The same in a sentence for whoever wrote the request; it names the field.
        field: The field at fault, where there is one.
    """

    status: int
    kind: str
    message: str
    field: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        # Seconds after which trying again makes sense.
        headers = {429: {"Retry-After": "1"}, 503: {"Retry-After": "2"}}.get(self.status, {})
        if self.status == 401:
            headers = {"WWW-Authenticate": "Bearer"}
        if self.status == 413:  # nobody reads the rest of the body: the connection cannot be used again
            headers = {"Connection": "close"}
        return headers


class ApiError(Exception):
    """A request that is refused before the service sees it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def invalid(message: str, field: str) -> ApiError:
    """A field that cannot be used as it is."""
    return ApiError(Problem(422, "validation", f"{field}: {message}", field))


_OF_THE_SERVICE: dict[type[service.ServiceError], tuple[int, str]] = {
    service.UnknownContext: (404, "unknown_context"),
    service.TooLong: (422, "too_long"),
    service.BadRequest: (422, "validation"),
    service.NotOffered: (501, "not_offered"),
    service.Overloaded: (429, "overloaded"),
    service.GenerationFailed: (500, "generation"),
    service.Loading: (503, "loading"),
    service.KnowledgeFailed: (503, "knowledge"),
}


def problem_of(error: service.ServiceError) -> Problem:
    """What the service refused."""
    status, kind = _OF_THE_SERVICE[type(error)]
    message = f"{error.field}: {error}" if error.field else str(error)
    return Problem(status, kind, message, error.field)


def complaint(error: ValidationError) -> Problem:
    """Put pydantic's first complaints about a body into one sentence that names field and value."""
    errors = error.errors(include_url=False)
    if errors[0]["type"] == "json_invalid":
        return Problem(400, "malformed_json", f"the body is not valid JSON: {errors[0]['ctx']['error']}")
    # Of alternatives each has a complaint of its own; those that got furthest are of use.
    deepest = _without_alternatives(errors)
    field = _field(deepest[0])
    return Problem(422, "validation", "; ".join(_one(e) for e in deepest[:5]), field or None)


def _without_alternatives(errors: list[Any]) -> list[Any]:
    """One complaint a field, and none about a field in which a more precise one is at fault."""
    by_field: dict[str, Any] = {}
    for error in errors:
        by_field.setdefault(_field(error), error)
    return [e for f, e in by_field.items() if not f or not any(o.startswith(f"{f}.") for o in by_field)]


def _field(error: Any) -> str:
    """The place in the body. Names of pydantic's alternatives, such as ``list[Turn]``, are no part of it."""
    if not error["loc"] and (match := _NAMED.match(error["msg"])):
        return match[1]
    parts = [str(part) for part in error["loc"]]
    return ".".join(part for part in parts if part.replace("_", "").isalnum() and not _is_alternative(part))


def _is_alternative(part: str) -> bool:
    """Whether it names a type of ours, or a simple one; names of fields begin with a small letter."""
    return part[0].isupper() or part in _ALTERNATIVES


# What a validator of several fields says: it names the one at fault itself.
_NAMED = re.compile(r"Value error, ([a-z_.]+): ")
_ALTERNATIVES = {"str", "int", "float", "bool", "dict", "none"}


def _one(error: Any) -> str:
    field = _field(error) or "body"
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
    if error["type"] in ("too_long", "value_error"):  # it says what the value is
        return message
    value = json.dumps(error["input"], ensure_ascii=False, default=str)
    return f"{message}, not {value if len(value) <= 60 else value[:57] + '...'}"
