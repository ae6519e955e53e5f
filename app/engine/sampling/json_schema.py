"""Defects of a JSON Schema that llguidance does not report, or only after seconds of compiling.

The checks depend only on the schema, not on compile time: each machine rejects the same schemas.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from typing import Any

Schema = Any  # a mapping or a bool; llguidance rejects other types
# Requirements of a schema: one alternative of each group; an alternative is a list of schemas, all required.
_Needs = list[list[list[Schema]]]

# llguidance compiles multipleOf to an automaton with that number of states. Above this limit it takes
# seconds. Each further digit takes ten times as much time and memory.
MAX_MULTIPLE = 10_000
_MAX_ROUNDS = 10  # real schemas need one or two; after these, no defect is reported
_MAX_INDEX_DIGITS = 9
# Keywords by the form of their value: a schema, a list of schemas, schemas by name.
_ONE = (
    *("additionalProperties", "additionalItems", "items", "contains", "not", "if", "then", "else"),
    *("propertyNames", "unevaluatedItems", "unevaluatedProperties"),
)
_MANY = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "dependentSchemas")


def schema_defect(schema: Schema) -> str | None:
    """The reason why a schema cannot be used as a grammar, in one line, or None."""
    schemas = _schemas_of(schema)
    return _large_multiples(schemas) or _endless(schemas, root=schema)


def _schemas_of(root: Schema) -> dict[str, Mapping[str, Any]]:
    """All subschemas by JSON pointer (RFC 6901), outer ones first."""
    found: dict[str, Mapping[str, Any]] = {}
    seen: set[int] = set()
    pending: list[tuple[str, Schema]] = [("#", root)]
    for pointer, schema in pending:  # grows during the loop
        if not isinstance(schema, Mapping) or id(schema) in seen:
            continue
        seen.add(id(schema))
        found[pointer] = schema
        pending += ((f"{pointer}/{path}", part) for path, part in _parts(schema))
        reference = schema.get("$ref")
        if isinstance(reference, str):
            pending.append((reference, resolved(reference, root)))
    return found


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Schema]]:
    """Direct subschemas with their paths."""
    for keyword in _ONE:
        yield keyword, schema.get(keyword)
    for keyword in _MANY:
        parts = schema.get(keyword)
        if isinstance(parts, list):
            yield from ((f"{keyword}/{index}", part) for index, part in enumerate(parts))
    for keyword in _NAMED:
        named = schema.get(keyword)
        if isinstance(named, Mapping):
            yield from ((f"{keyword}/{escaped(name)}", part) for name, part in named.items())


def escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def resolved(reference: str, root: Schema) -> Schema:
    """The target of a JSON pointer in the document; True (any value) for other or unresolved references."""
    if reference == "#":
        return root
    if not reference.startswith("#/"):
        return True
    value = root
    for step in reference[2:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list) and _is_index(name) and int(name) < len(value):
            value = value[int(name)]
        else:
            return True
    return value


def _is_index(step: str) -> bool:
    return step.isascii() and step.isdecimal() and len(step) <= _MAX_INDEX_DIGITS


def _large_multiples(schemas: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Reject large multiples. Several of one value compile to their least common multiple."""
    common = 1
    for schema in schemas.values():
        multiple = schema.get("multipleOf")
        if isinstance(multiple, float) and math.isfinite(multiple):
            multiple = Fraction(str(multiple))
        if isinstance(multiple, (int, Fraction)) and multiple > 0:
            common = math.lcm(common, multiple.numerator, multiple.denominator)
        if common > MAX_MULTIPLE:
            return f"multipleOf: the least common multiple of all values should be at most {MAX_MULTIPLE}"
    return None


def _endless(schemas: Mapping[str, Mapping[str, Any]], root: Schema) -> str | None:
    """Find a schema that requires itself: no finite text satisfies it.

    Least fixed point: a schema is satisfiable once all its requirements are. The schemas left over are not.
    """
    pointers = {id(schema): pointer for pointer, schema in schemas.items()}
    # Inner schemas first, because requirements are mostly inner schemas. Each round reverses the order.
    left = {id(schema): _needs(schema, root) for schema in reversed(list(schemas.values()))}
    for number in range(_MAX_ROUNDS):
        n_before = len(left)
        for schema, needs in [*left.items()][:: -1 if number % 2 else 1]:
            if not _unmet(needs, left):
                del left[schema]
        if len(left) == n_before:
            break
    else:
        return None
    if not left:
        return None
    schema, passed = (
        next(reversed(left)),
        set[int](),
    )  # follow requirements from the outermost schema to a cycle
    while schema not in passed:
        passed.add(schema)
        schema = _unmet(left[schema], left)[0]
    return f"no finite text satisfies it: {pointers[schema]} requires itself"


def _unmet(needs: _Needs, endless: Collection[int]) -> list[int]:
    """Ids of the endless schemas in the first alternative of the first unmet group; empty if all are met."""
    for group in needs:
        endless_parts = [[id(part) for part in parts if id(part) in endless] for parts in group]
        if all(endless_parts):
            return endless_parts[0]
    return []


def _needs(schema: Mapping[str, Any], root: Schema) -> _Needs:
    if "const" in schema or "enum" in schema:
        return []
    needs: _Needs = []
    reference = schema.get("$ref")
    if isinstance(reference, str):
        needs.append([[resolved(reference, root)]])
    if isinstance(all_of := schema.get("allOf"), list):
        needs += ([[part]] for part in all_of)
    for keyword in ("anyOf", "oneOf"):
        if isinstance(parts := schema.get(keyword), list) and parts:
            needs.append([[part] for part in parts])
    types = schema.get("type")
    types = types if isinstance(types, list) else [types]
    if types and all(type_ in ("object", "array") for type_ in types):
        of_type = {"object": _required_properties, "array": _required_items}
        needs.append([list(of_type[type_](schema)) for type_ in types])
    return needs


def _required_properties(schema: Mapping[str, Any]) -> Iterator[Schema]:
    properties, required = schema.get("properties"), schema.get("required")
    properties = properties if isinstance(properties, Mapping) else {}
    for name in required if isinstance(required, list) else []:
        if not isinstance(name, str):
            continue
        if name in properties:
            yield properties[name]
        elif not schema.get("patternProperties"):
            yield schema.get("additionalProperties", True)


def _required_items(schema: Mapping[str, Any]) -> Iterator[Schema]:
    n_items = schema.get("minItems", 0)
    if not isinstance(n_items, int):
        return
    items = schema.get("items", True)
    first, rest = schema.get("prefixItems", []), items
    if isinstance(items, list):  # drafts before 2020-12
        first, rest = items, schema.get("additionalItems", True)
    if isinstance(first, list):
        yield from first[:n_items]
        if n_items > len(first):
            yield rest
