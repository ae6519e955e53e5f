"""Rejected requests: exceptions and validation errors as ``Problem``."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from app import service
from app.api.dialect import Kind, Problem


class ApiError(Exception):
    """A request that is rejected before it reaches the service."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def invalid(message: str, field: str) -> ApiError:
    """An invalid value of a field."""
    return ApiError(Problem(422, "validation", f"{field}: {message}", field))


@contextlib.contextmanager
def naming(field: str) -> Iterator[None]:
    """Convert a ValueError to an error of a field."""
    try:
        yield
    except ValueError as error:
        raise invalid(str(error), field) from None


_STATUS_AND_KIND: dict[type[service.ServiceError], tuple[int, Kind]] = {
    service.Forbidden: (403, "forbidden"),
    service.UnknownContext: (404, "unknown_context"),
    service.UnknownModel: (404, "unknown_model"),
    service.TooLong: (422, "too_long"),
    service.BadRequest: (422, "validation"),
    service.NotOffered: (501, "not_offered"),
    service.Overloaded: (429, "overloaded"),
    service.GenerationFailed: (500, "generation"),
    service.LoadFailed: (503, "load_failed"),
    service.Loading: (503, "loading"),
    service.KnowledgeFailed: (503, "knowledge"),
}


def problem_of(error: service.ServiceError) -> Problem:
    status, kind = _STATUS_AND_KIND[type(error)]
    message = f"{error.field}: {error}" if error.field else str(error)
    if isinstance(error, service.Overloaded):
        return Problem(status, kind, message, error.field, error.retry_after)
    return Problem(status, kind, message, error.field)


def validation_problem(error: ValidationError) -> Problem:
    """Summarize pydantic's first errors in one message that names fields and values."""
    errors = error.errors(include_url=False)
    if errors[0]["type"] == "json_invalid":
        return Problem(400, "malformed_json", f"the body is not valid JSON: {errors[0]['ctx']['error']}")
    deepest = _deepest(errors)
    field = _field(deepest[0])
    return Problem(422, "validation", "; ".join(_one(e) for e in deepest[:5]), field or None)


def _deepest(errors: list[Any]) -> list[Any]:
    """One error per field. A field with an error in a nested field is omitted.

    Pydantic reports an error for every member of a union. The most deeply nested one is useful.
    """
    by_field: dict[str, Any] = {}
    for error in errors:
        by_field.setdefault(_field(error), error)
    return [e for f, e in by_field.items() if not f or not any(o.startswith(f"{f}.") for o in by_field)]


def _field(error: Any) -> str:
    """Dotted path of the field, without the names of union members such as ``list[Turn]``."""
    if not error["loc"] and (match := _NAMED.match(error["msg"])):
        return match[1]
    parts = [str(part) for part in error["loc"]]
    return ".".join(part for part in parts if part.replace("_", "").isalnum() and not _is_union_member(part))


def _is_union_member(part: str) -> bool:
    """Whether a part is the name of a class or simple type. Field names begin with a small letter."""
    return part[0].isupper() or part in _SIMPLE_TYPES


# Validators of several fields put the name of the field into the message.
_NAMED = re.compile(r"Value error, ([a-z_.]+): ")
_SIMPLE_TYPES = {"str", "int", "float", "bool", "dict", "none"}


def _one(error: Any) -> str:
    field = _field(error) or "body"
    if error["type"] == "extra_forbidden":
        return f"{field}: unknown field"
    if error["type"] == "missing":
        return f"{field}: is required"
    if error["type"] in ("too_long", "string_too_long") and error["ctx"]["max_length"] == 0:
        return f"{field}: is not supported"
    message = (
        error["msg"].removeprefix("Value error, ").replace("Input ", "").replace(" after validation", "")
    )
    if not error["loc"]:  # from a validator of several fields: the message names the field
        return str(message)
    message = f"{field}: {message[0].lower()}{message[1:]}"
    if error["type"] in ("too_long", "value_error"):  # the message contains the value
        return message
    value = json.dumps(error["input"], ensure_ascii=False, default=str)
    return f"{message}, not {value if len(value) <= 60 else value[:57] + '...'}"
