"""What is wrong with a JSON Schema as a grammar that its compiler would not tell, or only after seconds.

Both are decided by the schema alone, never by how long something takes on this machine today.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from typing import Any

Schema = Any  # a mapping or a bool; anything else is the compiler's to refuse
# Ways to satisfy a schema: of every group, one of its members, with all the schemas that it lists.
_Needs = list[list[list[Schema]]]

# llguidance writes a multiple as an automaton that counts to it: beyond this, compiling takes seconds, and
# with every further digit ten times as much time and memory.
_LARGEST_MULTIPLE = 10_000
_ROUNDS = 10  # real schemas need one or two; beyond, nothing is claimed
_LONGEST_INDEX = 9  # digits
_ONE = (
    *("additionalProperties", "additionalItems", "items", "contains", "not", "if", "then", "else"),
    *("propertyNames", "unevaluatedItems", "unevaluatedProperties"),
)
_MANY = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "dependentSchemas")


def complaint_about(schema: Schema) -> str | None:
    """Why a schema is no use as a grammar, in one line; None where nothing is known against it."""
    schemas = _schemas_of(schema)
    return _large_multiples(schemas) or _endless(schemas, root=schema)


def _schemas_of(root: Schema) -> dict[str, Mapping[str, Any]]:
    """Every schema that may apply, by the JSON pointer to it (RFC 6901), outer ones first."""
    found: dict[str, Mapping[str, Any]] = {}
    seen: set[int] = set()
    pending: list[tuple[str, Schema]] = [("#", root)]
    for pointer, schema in pending:  # grows while it is walked
        if not isinstance(schema, Mapping) or id(schema) in seen:
            continue
        seen.add(id(schema))
        found[pointer] = schema
        pending += ((f"{pointer}/{path}", part) for path, part in _parts(schema))
        reference = schema.get("$ref")
        if isinstance(reference, str):
            pending.append((reference, _resolved(reference, root)))
    return found


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Schema]]:
    """The schemas directly within one, with the path to each."""
    for keyword in _ONE:
        yield keyword, schema.get(keyword)
    for keyword in _MANY:
        parts = schema.get(keyword)
        if isinstance(parts, list):
            yield from ((f"{keyword}/{index}", part) for index, part in enumerate(parts))
    for keyword in _NAMED:
        named = schema.get(keyword)
        if isinstance(named, Mapping):
            yield from ((f"{keyword}/{_escaped(name)}", part) for name, part in named.items())


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _resolved(reference: str, root: Schema) -> Schema:
    """What a pointer within the document points to; True for what is found in other ways or not at all."""
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
    return step.isascii() and step.isdecimal() and len(step) <= _LONGEST_INDEX


def _large_multiples(schemas: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Large multiples, together too: of several that meet in one value the least common one counts."""
    common = 1
    for schema in schemas.values():
        multiple = schema.get("multipleOf")
        if isinstance(multiple, float) and math.isfinite(multiple):
            multiple = Fraction(str(multiple))
        if isinstance(multiple, (int, Fraction)) and multiple > 0:
            common = math.lcm(common, multiple.numerator, multiple.denominator)
        if common > _LARGEST_MULTIPLE:
            return f"multipleOf: the least common multiple of all should be at most {_LARGEST_MULTIPLE}"
    return None


def _endless(schemas: Mapping[str, Mapping[str, Any]], root: Schema) -> str | None:
    """A schema that requires itself within itself: an answer would begin it again and again, and never end.

    The least fixed point: a schema has texts that end as soon as all that it requires has some; what is left
    when no more are found has none.
    """
    pointers = {id(schema): pointer for pointer, schema in schemas.items()}
    # What is required is mostly further in, so the inner ones come first; the next round goes the other way.
    left = {id(schema): _needs(schema, root) for schema in reversed(list(schemas.values()))}
    for number in range(_ROUNDS):
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
    schema, passed = next(reversed(left)), set[int]()  # from the outermost to one that leads to itself
    while schema not in passed:
        passed.add(schema)
        schema = _unmet(left[schema], left)[0]
    return f"no text satisfies it: {pointers[schema]} requires itself, without end"


def _unmet(needs: _Needs, endless: Collection[int]) -> list[int]:
    """The schemas without an end, by their ids, for which the first group that is not met is not."""
    for group in needs:
        in_the_way = [[id(part) for part in parts if id(part) in endless] for parts in group]
        if all(in_the_way):
            return in_the_way[0]
    return []


def _needs(schema: Mapping[str, Any], root: Schema) -> _Needs:
    if "const" in schema or "enum" in schema:
        return []
    needs: _Needs = []
    reference = schema.get("$ref")
    if isinstance(reference, str):
        needs.append([[_resolved(reference, root)]])
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
    if isinstance(items, list):  # until draft 2019-09
        first, rest = items, schema.get("additionalItems", True)
    if isinstance(first, list):
        yield from first[:n_items]
        if n_items > len(first):
            yield rest
