"""Complements of JSON schemas, as schemas without ``not``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from app.engine.sampling.json_schema import Schema, resolved

TYPES = ("null", "boolean", "number", "string", "array", "object")
ANNOTATIONS = frozenset(
    {"$schema", "$id", "$comment", "$anchor", "$defs", "definitions", "title", "description", "default"}
    | {"examples", "deprecated", "readOnly", "writeOnly", "discriminator"}
)
_MAX_SCHEMAS = 100  # within one complement, with the targets of references
_MAX_VALUES = 100  # of an enumeration
_MAX_CHARACTERS = 2000  # of all texts of an enumeration
_MAX_LENGTH = 60  # characters of a text: each adds levels to the expression, which has at most 250
# Keywords of one type: the type, and the keyword of the values outside with the difference of its bound.
_BOUNDS = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "maxProperties": ("object", "minProperties", 1),
    "minProperties": ("object", "maxProperties", -1),
}


@dataclass(slots=True)
class _Work:
    """Schemas that one complement may still visit. References can repeat without end."""

    root: Schema
    left: int = _MAX_SCHEMAS


def complement(schema: Schema, root: Schema) -> Schema | None:
    """A schema of all values that ``schema`` rejects; None if it cannot be written without ``not``."""
    return _complement(schema, _Work(root))


def _complement(schema: Schema, work: _Work) -> Schema | None:
    if isinstance(schema, bool):
        return not schema
    work.left -= 1
    if not isinstance(schema, Mapping) or work.left < 0:
        return None
    outside: list[Schema] = []
    for keyword, value in schema.items():
        if keyword in ANNOTATIONS:
            continue
        part = _of_keyword(keyword, value, work)
        if part is None:
            return None
        outside.append(part)
    return any_of(outside)


def any_of(parts: list[Schema]) -> Schema:
    parts = [part for part in parts if part is not False]
    if any(part is True or part == {} for part in parts):
        return True
    if len(parts) < 2:
        return parts[0] if parts else False
    return {"anyOf": parts}


def other_types(names: Collection[str]) -> Schema:
    """A schema of all values of other types."""
    types = [type_ for type_ in TYPES if type_ not in names]
    return {"type": types} if types else False


def _of_keyword(keyword: str, value: Any, work: _Work) -> Schema | None:
    if keyword in _BOUNDS:
        return _of_bound(keyword, value)
    find = _COMPLEMENTS.get(keyword)
    return find(value, work) if find else None


def _of_bound(keyword: str, value: Any) -> Schema | None:
    type_, other, difference = _BOUNDS[keyword]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    bound = value + difference
    return {"type": type_, other: bound} if type_ == "number" or bound >= 0 else False


def _of_type(value: Any, _work: _Work) -> Schema | None:
    names = [value] if isinstance(value, str) else value
    # Numbers that are no integers have no keyword of their own.
    if not isinstance(names, list) or not all(name in TYPES for name in names):
        return None
    return other_types(names)


def _of_values(values: Any, _work: _Work) -> Schema | None:
    """The values outside an enumeration of null, booleans, numbers and texts."""
    if not isinstance(values, list) or len(values) > _MAX_VALUES:
        return None
    if any(isinstance(value, (list, Mapping)) for value in values):
        return None
    texts = {value for value in values if isinstance(value, str)}
    pattern = pattern_of_others(texts)
    if pattern is None:
        return None
    booleans = {value for value in values if isinstance(value, bool)}
    numbers = sorted({v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)})
    present = {"null": None in values, "boolean": booleans, "number": numbers, "string": texts}
    parts = [other_types([name for name, found in present.items() if found])]
    if booleans:
        parts += ({"const": value} for value in (False, True) if value not in booleans)
    if numbers:
        parts.append({"type": "number", "exclusiveMaximum": numbers[0]})
        parts += (
            {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high}
            for low, high in itertools.pairwise(numbers)
        )
        parts.append({"type": "number", "exclusiveMinimum": numbers[-1]})
    if texts:
        parts.append({"type": "string", "pattern": pattern})
    return any_of(parts)


def pattern_of_others(texts: Collection[str]) -> str | None:
    """A regular expression of all texts except these; None if it would be too large."""
    lengths = [*map(len, texts)]
    if sum(lengths) > _MAX_CHARACTERS or max(lengths, default=0) > _MAX_LENGTH:
        return None
    return f"^{_others(texts)}$"


def _others(texts: Collection[str]) -> str:
    by_first: dict[str, set[str]] = {}
    for text in texts:
        if text:
            by_first.setdefault(text[0], set()).add(text[1:])
    ways = [] if "" in texts else [""]
    if by_first:
        ways.append(f"[^{''.join(_escaped(character) for character in sorted(by_first))}](?s:.*)")
        ways += (f"{_escaped(first)}{_others(rest)}" for first, rest in sorted(by_first.items()))
    else:
        ways.append("(?s:.+)")
    return f"(?:{'|'.join(ways)})"


def _escaped(character: str) -> str:
    return "\\" + character if character in "^-&~[]" else re.escape(character)


def _of_required(names: Any, _work: _Work) -> Schema | None:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return any_of([{"type": "object", "properties": {name: False}} for name in names])


def _of_properties(named: Any, work: _Work) -> Schema | None:
    if not isinstance(named, Mapping):
        return None
    parts: list[Schema] = []
    for name, schema in named.items():
        outside = _complement(schema, work)
        if outside is None:
            return None
        if outside is not False:
            parts.append({"type": "object", "properties": {name: outside}, "required": [name]})
    return any_of(parts)


def _of_any(schemas: Any, work: _Work) -> Schema | None:
    parts = _all(schemas, work)
    return None if parts is None else {"allOf": parts}


def _of_all(schemas: Any, work: _Work) -> Schema | None:
    parts = _all(schemas, work)
    return None if parts is None else any_of(parts)


def _all(schemas: Any, work: _Work) -> list[Schema] | None:
    parts = [_complement(schema, work) for schema in schemas] if isinstance(schemas, list) else [None]
    return None if any(part is None for part in parts) else parts


def _of_reference(reference: Any, work: _Work) -> Schema | None:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    return _complement(resolved(reference, work.root), work)


_COMPLEMENTS: dict[str, Callable[[Any, _Work], Schema | None]] = {
    "type": _of_type,
    "const": lambda value, work: _of_values([value], work),
    "enum": _of_values,
    "required": _of_required,
    "properties": _of_properties,
    "not": lambda schema, _work: schema,
    "anyOf": _of_any,
    "allOf": _of_all,
    "$ref": _of_reference,
}
