"""Defects of JSON schemas."""

from __future__ import annotations

from typing import Any

import pytest

from app.engine.sampling.json_schema import schema_defect
from app.engine.sampling.schema_adaptation import adapted


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/allOf/" + "9" * 5000, "allOf": [True]},
        {"$ref": "#/allOf/³", "allOf": [True]},
        {"type": [{}], "required": [[]], "minItems": "x", "properties": [], "anyOf": [], "prefixItems": 1},
        {"type": ["array", "object"], "required": [[], {}], "minItems": -(10**30), "items": [[]]},
        {"multipleOf": "x", "$ref": 3, "allOf": {}},
        {"format": {}, "pattern": [], "oneOf": [1, {"enum": 2}], "$dynamicAnchor": {}, "dependencies": [{}]},
        {
            "not": {"required": [[]], "type": [{}]},
            "if": {"properties": 1},
            "uniqueItems": True,
            "minItems": [],
        },
    ],
)
def test_any_json_can_be_inspected_as_a_schema(schema: Any) -> None:
    assert schema_defect(schema) is None
    adapted(schema)


@pytest.mark.parametrize("step", [1, -1])
def test_long_chains_of_references_are_followed(step: int) -> None:
    first, last = (0, 2000)[::step]
    chain = {f"p{i}": {"$ref": f"#/properties/p{i + step}"} for i in range(first, last, step)}
    assert schema_defect({"properties": chain | {f"p{last}": {"type": "null"}}}) is None
    endless = {"properties": chain | {f"p{last}": {"$ref": f"#/properties/p{last}"}}}
    assert schema_defect(endless) == f"no finite text satisfies it: #/properties/p{last} requires itself"
