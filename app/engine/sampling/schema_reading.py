"""Properties of JSON schemas that decide how they are rewritten."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher

from app.engine.sampling.json_schema import Schema, resolved

_MAX_REFERENCES = 6  # in a row


def is_supported(schema: Schema) -> bool:
    """Whether llguidance compiles a small schema."""
    try:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    except ValueError:
        return False
    error = LLMatcher.validate_grammar(grammar)
    return not error or "nsatisfiable" in error


def values_of(schema: Schema, root: Schema) -> list[Any] | None:
    """All values of an enumeration; None for other schemas."""
    for _ in range(_MAX_REFERENCES):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            break
        schema = resolved(str(schema["$ref"]), root)
    if not isinstance(schema, Mapping):
        return None
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is None and schema.get("type") in ("boolean", "null"):
        values = [False, True] if schema["type"] == "boolean" else [None]
    known = {"const", "enum", "type", "title", "description", "default"}
    if not isinstance(values, list) or schema.keys() - known:
        return None
    by_text = {json.dumps(whole(value), sort_keys=True): value for value in values}
    return list(by_text.values())


def at_most_one(here: Mapping[str, Any]) -> bool:
    most = here.get("maxItems")
    return isinstance(most, int) and most <= 1


def pattern_of_names(schema: Schema) -> str | None:
    if not isinstance(schema, Mapping):
        return None
    if schema.keys() == {"pattern"} and isinstance(schema["pattern"], str):
        return str(schema["pattern"])
    if schema and schema.keys() <= {"minLength", "maxLength"}:
        return f"^(?s:.){{{whole(schema.get('minLength', 0))},{whole(schema.get('maxLength', ''))}}}$"
    return None


def whole(value: Any) -> Any:
    """A number without a fractional part as an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
