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


def validation_problem(error: ValidationError, value: Any = None) -> Problem:
    """Summarize pydantic's first errors in one message that names fields and values.

    Args:
        error: The errors.
        value: The validated value, to tell names of fields from those of union members.
    """
    errors = error.errors(include_url=False)
    if errors[0]["type"] == "json_invalid":
        return Problem(400, "malformed_json", f"the body is not valid JSON: {errors[0]['ctx']['error']}")
    for one in errors:
        one["loc"] = _place(one, value)
    deepest = _deepest(errors)
    field = _field(deepest[0][0])
    return Problem(422, "validation", "; ".join(map(_one, deepest[:5])), field or None)


def _place(error: Any, value: Any) -> tuple[Any, ...]:
    """The location of an error, without the tags of union members."""
    place: list[Any] = []
    for index, part in enumerate(error["loc"]):
        try:
            value = value[part]
        except (TypeError, LookupError):
            is_missing = error["type"] == "missing" and index == len(error["loc"]) - 1
            if index > 0 and isinstance(value, dict) and not is_missing:
                continue
        place.append(part)
    if error["type"] in _TAG_ERRORS:
        place.append(_discriminator(error))
    return tuple(place)


def _discriminator(error: Any) -> str:
    """The field that selects the member of a union. A function that reads it reads ``type``."""
    name = str(error["ctx"]["discriminator"]).strip("'")
    return name if name.isidentifier() else "type"


def _deepest(errors: list[Any]) -> list[list[Any]]:
    """The errors of each field. A field with an error in a nested field is omitted.

    Pydantic reports an error for every member of a union. The most deeply nested one is useful.
    """
    by_field: dict[str, list[Any]] = {}
    for error in errors:
        by_field.setdefault(_field(error), []).append(error)
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
_NAMED = re.compile(r"Value error, ([a-z0-9_.]+): ")
_SIMPLE_TYPES = {"str", "int", "float", "bool", "dict", "none"}
_TAG_ERRORS = ("union_tag_invalid", "union_tag_not_found")


def _one(errors: list[Any]) -> str:
    """The message about a field. A union has an error for each type that the field may have."""
    error = errors[0]
    field = _field(error) or "body"
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return f"{field}: unknown field"
    if kind in ("missing", "union_tag_not_found"):
        return f"{field}: is required"
    if kind == "union_tag_invalid":
        return f"{field}: should be one of {error['ctx']['expected_tags']}, not {_shown(error['ctx']['tag'])}"
    if kind in ("too_long", "string_too_long") and error["ctx"]["max_length"] == 0:
        return f"{field}: is not supported"
    if kind == "value_error":  # the message contains the value
        message = error["msg"].removeprefix("Value error, ")
        # That of a validator of several fields names the field.
        return f"{field}: {_lower(message)}" if error["loc"] else message
    message = error["msg"].removeprefix("Input ").replace(" after validation", "")
    if kind in ("too_long", "too_short"):
        message = message.replace("Dictionary", "Object").rpartition(", not ")[0]
        return f"{field}: {_lower(message)}, not {len(given)}"
    alternatives = [
        e["msg"] for e in errors[1:] if e["type"].endswith(("_type", "_parsing", "literal_error"))
    ]
    for other in dict.fromkeys(a.removeprefix("Input should be ") for a in alternatives):
        message += f" or {other}"
    return f"{field}: {_lower(message)}, not {_shown(given)}"


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
