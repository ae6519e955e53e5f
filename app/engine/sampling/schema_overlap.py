"""Whether no value satisfies two JSON schemas."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from app.engine.sampling.json_schema import Schema, resolved

_MAX_PARTS = 20
_MAX_DEPTH = 6  # of properties and references


def are_disjoint(a: Schema, b: Schema, root: Schema, work: list[int], depth: int = 0) -> bool:
    """Whether no value satisfies both schemas, by their types, values and required properties.

    Args:
        a: A schema.
        b: Another schema.
        root: Their document.
        work: Number of comparisons that remain, in a list: it is reduced.
        depth: Number of schemas around them.

    Returns:
        False if it is unknown.
    """
    if a is False or b is False:
        return True
    work[0] -= 1
    if depth > _MAX_DEPTH or work[0] < 0:
        return False
    for first, second in ((a, b), (b, a)):
        for keyword in ("anyOf", "oneOf"):
            parts = first.get(keyword) if isinstance(first, Mapping) else None
            if isinstance(parts, list) and parts:
                if all(are_disjoint(part, second, root, work, depth + 1) for part in parts):
                    return True
                break
    all_a = list(itertools.islice(_required_schemas(a, root), _MAX_PARTS))
    all_b = list(itertools.islice(_required_schemas(b, root), _MAX_PARTS))
    return any(_differ(x, y, root, work, depth) for x in all_a for y in all_b)


def _required_schemas(schema: Schema, root: Schema, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The schema, the targets of its references, and its parts of ``allOf``."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return
    yield schema
    reference = schema.get("$ref")
    if isinstance(reference, str):
        yield from _required_schemas(resolved(reference, root), root, depth + 1)
    parts = schema.get("allOf")
    for part in parts[:_MAX_DEPTH] if isinstance(parts, list) else ():
        yield from _required_schemas(part, root, depth + 1)


def _differ(a: Mapping[str, Any], b: Mapping[str, Any], root: Schema, work: list[int], depth: int) -> bool:
    types_a, types_b = _types(a), _types(b)
    if types_a is not None and types_b is not None and not types_a & types_b:
        return True
    values_a, values_b = _values(a), _values(b)
    if values_a is not None and values_b is not None:
        return not any(_equal(x, y) for x in values_a for y in values_b)
    for one, other in ((a, b), (b, a)):
        if _types(one) != {"object"}:
            continue
        required, named = one.get("required"), other.get("properties")
        for name in required if isinstance(required, list) else ():
            own = one.get("properties")
            mine = own.get(name, True) if isinstance(own, Mapping) else True
            if isinstance(named, Mapping) and name in named:
                if are_disjoint(mine, named[name], root, work, depth + 1):
                    return True
            elif other.get("additionalProperties") is False and not other.get("patternProperties"):
                return True  # the property is required by one and forbidden by the other
    return False


def _types(schema: Mapping[str, Any]) -> set[str] | None:
    """The possible types; None: all. Integers are numbers."""
    names = schema.get("type")
    if names is None and _values(schema) is not None:
        return {_type_of(value) for value in _values(schema) or ()}
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return {"number" if name == "integer" else name for name in names}


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    kinds = ((bool, "boolean"), ((int, float), "number"), (str, "string"), (list, "array"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "object")


def _equal(a: Any, b: Any) -> bool:
    return _type_of(a) == _type_of(b) and bool(a == b)
