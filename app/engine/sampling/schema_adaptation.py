"""Rewrites JSON schemas with the keywords that llguidance supports.

Some keywords have an equivalent. Others are replaced by the nearest looser schema, and are listed as losses.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from app.engine.sampling.json_schema import MAX_MULTIPLE, Schema, escaped
from app.engine.sampling.schema_complement import (
    TYPES,
    any_of,
    complement,
    other_types,
    pattern_of_others,
)
from app.engine.sampling.schema_formats import FORMAT_PATTERNS, NATIVE_FORMATS
from app.engine.sampling.schema_overlap import are_disjoint
from app.engine.sampling.schema_patterns import without_look_around
from app.engine.sampling.schema_reading import at_most_one, is_supported, pattern_of_names, values_of, whole

_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_COUNTS_OF_CONTAINS = ("minContains", "maxContains")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_ONE = ("additionalProperties", "additionalItems", "items")
_MANY = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_IN_PLACE = ("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "dependencies", "$dynamicRef")
_MAX_UNIQUE = 5  # values of an array; all orders of five are 326 arrays
_MAX_COMPARED = 10_000  # pairs of schemas
_MAX_ARRAYS = 5000  # of a document
_MAX_VALUE_TEXT = 500  # characters of all values of an array
_MAX_DEPENDENCIES = 6  # each doubles the number of alternatives
_MAX_MENTIONED = 3  # losses in a message
_SHOWN_PATTERN = 40  # characters
_OLD_DRAFTS = ("draft-03", "draft-04", "draft-06", "draft-07")
_CACHED_TEXT = 100_000  # characters


@dataclass(frozen=True, slots=True)
class Adapted:
    """A schema with supported keywords.

    Attributes:
        schema: The schema. It admits all values that the original admits.
        losses: Keywords that it does not enforce, each with the JSON pointer of its schema.
    """

    schema: Schema
    losses: tuple[str, ...]

    @property
    def lost(self) -> str:
        """The losses in one line."""
        more = len(self.losses) - _MAX_MENTIONED
        return ", ".join(self.losses[:_MAX_MENTIONED]) + (f" and {more} more" if more > 0 else "")

    @property
    def lost_keywords(self) -> str:
        """The keywords of the losses, without values and pointers, which are texts of a client."""
        return ", ".join(dict.fromkeys(loss.split()[0] for loss in self.losses))


def adapted(schema: Schema) -> Adapted:
    """Rewrite a schema."""
    text = json.dumps(schema)
    return _adapted(text) if len(text) <= _CACHED_TEXT else _adapted.__wrapped__(text)


@functools.lru_cache(64)
def _adapted(text: str) -> Adapted:
    root = json.loads(text)
    version = root.get("$schema") if isinstance(root, dict) else None
    is_old = isinstance(version, str) and any(draft in version for draft in _OLD_DRAFTS)
    has_patterns = "patternProperties" in text or "propertyNames" in text
    has_parts = any(f'"{keyword}"' in text for keyword in (*_IN_PLACE, "not", "dependentRequired"))
    adaptation = _Adaptation(root, has_patterns, has_parts, is_old)
    schema = adaptation.of(root, "#")
    if adaptation.has_remote and not is_supported(schema):
        adaptation = _Adaptation(root, has_patterns, has_parts, is_old, drops_remote=True)
        schema = adaptation.of(root, "#")
    return Adapted(schema, tuple(dict.fromkeys(adaptation.losses)))


@dataclass(slots=True)
class _Adaptation:
    """The rewriting of one document."""

    root: Schema
    has_patterns: bool  # patterns of keys: they have to be disjoint
    has_parts: bool  # intersections of schemas
    is_old: bool  # before draft 2019-09: a reference replaces the keywords beside it
    drops_remote: bool = False
    has_remote: bool = False  # a reference to another document, or to an ``$id`` of this one
    n_arrays: int = 0  # enumerated, for ``uniqueItems``
    losses: list[str] = field(default_factory=list)

    def lose(self, keyword: str, pointer: str) -> None:
        self.losses.append(f"{keyword} at {pointer}")

    def of(self, schema: Schema, pointer: str) -> Schema:
        """The rewritten schema; values of other types are unchanged, and llguidance rejects them."""
        if not isinstance(schema, Mapping):
            return schema
        here = {keyword: whole(value) if keyword in _COUNTS else value for keyword, value in schema.items()}
        if self.is_old and "$ref" in here:
            here = {k: v for k, v in here.items() if k in ("$ref", "$defs", "definitions", "$schema")}
        conditions: list[Schema] = []  # all required, beside the remaining keywords
        for rewrite in _REWRITES:
            conditions += rewrite(self, here, pointer)
        for keyword in _ONE:
            if isinstance(here.get(keyword), Mapping):
                here[keyword] = self.of(here[keyword], f"{pointer}/{keyword}")
        for keyword in _MANY:
            if isinstance(parts := here.get(keyword), list):
                here[keyword] = [self.of(p, f"{pointer}/{keyword}/{i}") for i, p in enumerate(parts)]
        for keyword in _NAMED:
            if isinstance(named := here.get(keyword), Mapping):
                place = f"{pointer}/{keyword}"
                here[keyword] = {n: self.of(p, f"{place}/{escaped(n)}") for n, p in named.items()}
        conditions = [condition for condition in conditions if condition is not True]
        if conditions:
            given = here.pop("allOf", [])
            here["allOf"] = [*(given if isinstance(given, list) else []), *conditions]
        return here

    # --- rewrites: each takes its keywords out of ``here`` and returns conditions in their place

    def format(self, here: dict[str, Any], __pointer: str) -> Sequence[Schema]:
        name = here.get("format")
        if not isinstance(name, str) or name in NATIVE_FORMATS:
            return ()
        del here["format"]
        return [{"pattern": FORMAT_PATTERNS[name]}] if name in FORMAT_PATTERNS else ()

    def pattern(self, here: dict[str, Any], pointer: str) -> Sequence[Schema]:
        pattern = here.get("pattern")
        if not isinstance(pattern, str) or is_supported({"type": "string", "pattern": pattern}):
            return ()
        shown = pattern if len(pattern) <= _SHOWN_PATTERN else pattern[:_SHOWN_PATTERN] + "…"
        self.lose(f"pattern {shown!r}", pointer)
        del here["pattern"]
        looser = without_look_around(pattern)
        if looser is not None and is_supported({"type": "string", "pattern": looser}):
            here["pattern"] = looser
        return ()

    def multiple(self, here: dict[str, Any], pointer: str) -> Sequence[Schema]:
        multiple = here.get("multipleOf")
        if isinstance(multiple, (int, float)) and not isinstance(multiple, bool) and 0 < multiple < 1e300:
            ratio = Fraction(str(multiple))
            if max(ratio.numerator, ratio.denominator) > MAX_MULTIPLE:
                self.lose("multipleOf", pointer)
                del here["multipleOf"]
        return ()

    def reference(self, here: dict[str, Any], pointer: str) -> Sequence[Schema]:
        for keyword, same in (("$dynamicAnchor", "$anchor"), ("$recursiveAnchor", "")):
            name = here.pop(keyword, None)
            if same and name is not None:
                here.setdefault(same, name)
        for keyword in ("$dynamicRef", "$recursiveRef"):
            if here.pop(keyword, None) is not None:
                self.lose(keyword, pointer)
        reference = here.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            self.has_remote = True
            if self.drops_remote:
                self.lose("$ref", pointer)
                del here["$ref"]
        return ()

    def one_of(self, here: dict[str, Any], pointer: str) -> Sequence[Schema]:
        parts = here.get("oneOf")
        if not isinstance(parts, list):
            return ()
        work = [_MAX_COMPARED]
        if not all(are_disjoint(a, b, self.root, work) for a, b in itertools.combinations(parts, 2)):
            self.lose("oneOf", pointer)
        del here["oneOf"]
        if "anyOf" not in here:
            here["anyOf"] = parts
            return ()
        return [self.of({"anyOf": parts}, pointer)]

    def negation(self, here: dict[str, Any], pointer: str) -> Sequence[Schema]:
        if "not" not in here:
            return ()
        outside = complement(here.pop("not"), self.root)
        if outside is None:
            self.lose("not", pointer)
            return ()
        return [self.of(outside, f"{pointer}/not")]

    def conditional(self, here: dict[str, Any], pointer: str) -> Sequence[Schema]:
        condition = here.pop("if", None)
        then, otherwise = here.pop("then", True), here.pop("else", True)
        if condition is None or (then is True and otherwise is True):
            return ()
        outside = complement(condition, self.root)
        if outside is None:
            self.lose("if", pointer)
            outside = True
        met = {"allOf": [self.of(condition, f"{pointer}/if"), self.of(then, f"{pointer}/then")]}
        unmet = {"allOf": [self.of(outside, f"{pointer}/if"), self.of(otherwise, f"{pointer}/else")]}
        if outside is True and otherwise is True:
            return ()
        return [any_of([met, unmet])]

    def dependencies(self, here: dict[str, Any], pointer: str) -> Sequence[Schema]:
        conditions: list[Schema] = []
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            named = here.pop(keyword, None)
            if not isinstance(named, Mapping):
                continue
            if len(named) > _MAX_DEPENDENCIES:
                self.lose(keyword, pointer)
                continue
            for name, needed in named.items():
                schema = {"required": needed} if isinstance(needed, list) else needed
                with_it = {"type": "object", "required": [name]}
                inner = self.of(schema, f"{pointer}/{keyword}/{escaped(name)}")
                absent = {"type": "object", "properties": {name: False}}
                conditions.append(any_of([other_types(["object"]), absent, {"allOf": [with_it, inner]}]))
        return conditions

    def unique(self, here: dict[str, Any], pointer: str) -> Sequence[Schema]:
        if here.pop("uniqueItems", None) is not True or at_most_one(here):
            return ()
        items = here.get("items", here.get("additionalItems", True))
        values = None if "prefixItems" in here else values_of(items, self.root)
        if values is None:
            self.lose("uniqueItems", pointer)
            return ()
        is_long = self.n_arrays > _MAX_ARRAYS or len(json.dumps(values)) > _MAX_VALUE_TEXT
        if len(values) > _MAX_UNIQUE or is_long:
            self.lose("uniqueItems", pointer)
            return [{"type": [*TYPES]} | {"maxItems": len(values)}]
        least, most = here.get("minItems", 0), here.get("maxItems", len(values))
        if not isinstance(least, int) or not isinstance(most, int):
            return ()  # invalid: llguidance reports it
        lengths = range(least, min(len(values), most) + 1)
        arrays = [list(order) for n in lengths for order in itertools.permutations(values, n)]
        self.n_arrays += len(arrays)
        return [any_of([other_types(["array"]), {"enum": arrays} if arrays else False])]

    def contains(self, here: dict[str, Any], pointer: str) -> Sequence[Schema]:
        schema = here.pop("contains", None)
        least, most = (whole(here.pop(keyword, None)) for keyword in _COUNTS_OF_CONTAINS)
        if schema is None:
            return ()
        least = least if isinstance(least, int) else 1
        if schema not in (True, {}) and (least > 0 or most is not None):
            self.lose("contains", pointer)
            most = None
        bounds = {"minItems": least} | ({} if most is None else {"maxItems": most})
        return [{"type": [*TYPES], **bounds}]

    def names(self, here: dict[str, Any], pointer: str) -> Sequence[Schema]:
        if "propertyNames" not in here:
            return ()
        schema = here.pop("propertyNames")
        if isinstance(schema, Mapping):
            schema = {k: v for k, v in schema.items() if (k, v) != ("type", "string") and k != "title"}
        if schema is True or schema == {}:
            return ()
        if schema is False:
            return [{"type": [*TYPES], "maxProperties": 0}]
        names = values_of(schema, self.root)
        if names is not None:
            allowed = {name: True for name in names if isinstance(name, str)}
            return self._only(here, allowed)
        pattern = pattern_of_names(schema)
        if pattern is not None and not here.get("properties") and not here.get("patternProperties"):
            here["patternProperties"] = {pattern: here.get("additionalProperties", True)}
            here["additionalProperties"] = False
            return ()
        self.lose("propertyNames", pointer)
        return ()

    def _only(self, here: dict[str, Any], allowed: dict[str, Schema]) -> Sequence[Schema]:
        """Restrict the properties to these names."""
        if not here.get("patternProperties") and isinstance(here.get("additionalProperties"), Mapping):
            rest = here.pop("additionalProperties")
            named = here.get("properties", {})
            here["properties"] = {**named, **{name: rest for name in allowed if name not in named}}
        return [{"properties": allowed, "additionalProperties": False}]

    def unevaluated(self, here: dict[str, Any], pointer: str) -> Sequence[Schema]:
        is_alone = not any(keyword in here for keyword in _IN_PLACE)
        pairs = (
            ("unevaluatedProperties", "additionalProperties"),
            ("unevaluatedItems", "additionalItems" if isinstance(here.get("items"), list) else "items"),
        )
        for keyword, same in pairs:
            schema = here.pop(keyword, True)
            if schema is True or schema == {} or same in here:
                continue
            if is_alone and not (same == "items" and "contains" in here):
                here[same] = schema
            else:
                self.lose(keyword, pointer)
        return ()

    def patterned(self, here: dict[str, Any], pointer: str) -> Sequence[Schema]:
        named = here.get("patternProperties")
        if not isinstance(named, Mapping):
            return ()
        if is_supported({"type": "object", "patternProperties": dict.fromkeys(named, True)}):
            return ()
        self.lose("patternProperties", pointer)
        del here["patternProperties"]
        here.pop("additionalProperties", None)
        return ()

    def counted(self, here: dict[str, Any], pointer: str) -> Sequence[Schema]:
        """Numbers of properties. Additional properties can occur twice in a text, so they count once."""
        keywords = ("properties", "required", "minProperties", "maxProperties")
        probe = {keyword: here[keyword] for keyword in keywords if keyword in here}
        if isinstance(named := probe.get("properties"), Mapping):
            probe["properties"] = dict.fromkeys(named, True)
        if "patternProperties" not in here and isinstance(here.get("additionalProperties"), bool):
            probe["additionalProperties"] = here["additionalProperties"]
        if not {"minProperties", "maxProperties"} & probe.keys():
            return ()
        if not is_supported({"type": "object", **probe}):
            for keyword in ("minProperties", "maxProperties"):
                if here.pop(keyword, None) is not None:
                    self.lose(keyword, pointer)
            return ()
        required = here.get("required", [])
        least = here.get("minProperties", 0)
        if isinstance(required, list) and isinstance(least, int) and least > len(required) + 1:
            self.lose("minProperties", pointer)
        return ()

    def keys(self, here: dict[str, Any], __pointer: str) -> Sequence[Schema]:
        """Keys of additional properties as a pattern: those of ``additionalProperties`` may have escapes.

        With escapes, ``"\\u0061"`` would be an additional property beside ``a``.
        """
        rest = here.pop("additionalProperties", True)
        named = here.pop("patternProperties", None)
        properties = here.get("properties")
        if named is None and isinstance(properties, Mapping) and properties and not self.has_patterns:
            if rest is True or rest == {}:
                named, rest = {"": True}, False
            elif rest is not False and not self.has_parts and (others := pattern_of_others(properties)):
                named, rest = {others: rest}, False
        if named is not None:
            here["patternProperties"] = named
        if rest is not True:
            here["additionalProperties"] = rest  # next to the patterns: llguidance needs both in one group
        return ()


# The order matters: ``unevaluated`` and ``contains`` look at keywords that later rewrites take out.
_REWRITES: tuple[Callable[[_Adaptation, dict[str, Any], str], Sequence[Schema]], ...] = (
    _Adaptation.unevaluated,
    _Adaptation.format,
    _Adaptation.pattern,
    _Adaptation.multiple,
    _Adaptation.reference,
    _Adaptation.one_of,
    _Adaptation.negation,
    _Adaptation.conditional,
    _Adaptation.dependencies,
    _Adaptation.unique,
    _Adaptation.contains,
    _Adaptation.names,
    _Adaptation.patterned,
    _Adaptation.counted,
    _Adaptation.keys,
)
