"""Grammars: random and generated answers match them, and unsupported schemas are rejected."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import numpy as np
import pytest

from app.engine.answer import EngineError
from app.engine.async_engine import AsyncEngine
from app.engine.detokenizer import Detokenizer
from app.engine.llama import Model
from app.engine.sampling import schema_complement, schema_overlap
from app.engine.sampling.grammar import Grammar, GrammarCompiler, GrammarError, Matcher
from app.engine.sampling.json_schema import Schema, resolved
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.schema_adaptation import adapted
from app.engine.sequence import FinishReason

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
HARD_SCHEMAS: dict[str, Any] = {
    "person": PERSON,
    "nested": {
        "type": "object",
        "properties": {
            "a": {
                "type": "object",
                "properties": {"b": {"type": "array", "items": PERSON, "minItems": 1, "maxItems": 2}},
                "required": ["b"],
                "additionalProperties": False,
            }
        },
        "required": ["a"],
        "additionalProperties": False,
    },
    "enum": {"enum": ["red", "green", 3, None, True, {"deep": ["er"]}]},
    "const": {"const": {"a": [1, "x"]}},
    "bounded array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "integer", "maximum": 9}, {"type": "null"}],
        "items": False,
        "minItems": 2,
    },
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "format": {"type": "string", "format": "date"},
    "numbers": {"type": "array", "items": {"type": "number", "minimum": -1, "maximum": 2.5}, "maxItems": 3},
    "exclusive": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 6},
    "any of": {"anyOf": [{"type": "integer"}, {"type": "object", "additionalProperties": {"type": "null"}}]},
    "one of": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": "a"}, "x": {"type": "integer"}},
                "required": ["kind", "x"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"kind": {"const": "b"}, "y": {"type": "string", "maxLength": 5}},
                "required": ["kind", "y"],
                "additionalProperties": False,
            },
        ]
    },
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"p": {"type": "integer"}}, "required": ["p"]},
            {"type": "object", "properties": {"q": {"type": "boolean"}}, "required": ["q"]},
        ],
    },
    "ref": {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer", "maximum": 99},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1},
                },
                "required": ["value", "children"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    "additional": {
        "type": "object",
        "properties": {"id": {"type": "integer"}},
        "required": ["id"],
        "additionalProperties": {"type": "string", "maxLength": 3},
    },
    "strings": {"type": "string", "minLength": 2, "maxLength": 6},
    "anything": {},
    "true": True,
}


@pytest.fixture(scope="module")
def grammars(model: Model) -> GrammarCompiler:
    return GrammarCompiler(model.vocab)


def random_text(matcher: Matcher, model: Model, seed: int, max_tokens: int = 200) -> str | None:
    """A text of random tokens that the grammar allows; None if it does not end within ``max_tokens``."""
    vocab, rng = model.vocab, np.random.default_rng(seed)
    text, detokenizer = "", Detokenizer(vocab)
    for _ in range(max_tokens):
        logits = rng.normal(size=vocab.n_tokens).astype(np.float32)
        logits[list(vocab.end_of_generation)] += 8  # otherwise arrays and texts do not end
        matcher.mask(logits)
        token = int(logits.argmax())
        assert np.isfinite(logits[token]), "the grammar allows a token"
        if token in vocab.end_of_generation:
            return text
        matcher.accept(token)
        text += detokenizer.push(token)
        if matcher.is_finished:
            return text + detokenizer.flush()
    return None


@pytest.mark.parametrize("name", HARD_SCHEMAS)
@pytest.mark.slow
def test_random_texts_match_their_schema(name: str, grammars: GrammarCompiler, model: Model) -> None:
    schema = HARD_SCHEMAS[name]
    grammar = grammars.json_schema(schema)
    texts = [random_text(grammar.matcher(), model, seed) for seed in range(12)]
    whole = [text for text in texts if text is not None]
    assert whole, "at least one text ends"
    for text in whole:
        jsonschema.validate(json.loads(text), schema)


def test_random_texts_match_their_regular_expression(grammars: GrammarCompiler, model: Model) -> None:
    pattern = r"(yes|no), [0-9]{1,3}( \p{Lu}+)?"
    for seed in range(8):
        text = random_text(grammars.regex(pattern).matcher(), model, seed)
        assert text is not None
        assert re.fullmatch(r"(yes|no), [0-9]{1,3}( [^\W\d_a-z]+)?", text), text


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "object", "not": {"propertyNames": {"pattern": "a"}}}, "not at #"),
        (
            {"properties": {"x": {"properties": {"b": {}}, "propertyNames": {"pattern": "^a"}}}},
            "propertyNames at #/properties/x",
        ),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "strange"}, "strange"),
        (False, "false"),
        ({"type": "integer", "multipleOf": 99999989}, "multipleOf"),
        ({"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]}, "multipleOf"),
        ({"multipleOf": 10**400}, "multipleOf"),
        ({"multipleOf": 1e-300}, "multipleOf"),
        ({"$ref": "#"}, "# requires itself"),
        ({"properties": {"x": {"$ref": "#"}}, "required": ["x"], "type": "object"}, "# requires itself"),
        (
            {"$defs": {"p/q": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/p~1q"}}}}
            | {"type": "object", "properties": {"a": {"$ref": "#/$defs/p~1q"}}, "required": ["a"]},
            "#/$defs/p~1q requires itself",
        ),
        ({"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(2000)}}, "size"),
        ({"$ref": "#/$defs/missing"}, "missing"),
        ({"type": "string", "pattern": "(?<=a)b"}, "(?"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
    ],
)
def test_unsupported_schemas_are_rejected_with_the_keyword(
    schema: Any, message: str, grammars: GrammarCompiler
) -> None:
    with pytest.raises(GrammarError) as error:
        grammars.json_schema(schema)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"type": ["object", "null"], "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
        {"properties": {"next": {"$ref": "#"}}, "required": ["next"]},
        {"type": "array", "items": {"$ref": "#"}},
        {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
            "required": ["next"],
        },
        {"$defs": {"endless": {"$ref": "#/$defs/endless"}}, "type": "integer"},
        {"const": {"multipleOf": 99999989}},
        {"type": "object", "properties": {"multipleOf": {"type": "integer"}}},
        {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(1000)}},
    ],
)
def test_schemas_similar_to_rejected_ones_are_supported(
    schema: Any, grammars: GrammarCompiler, model: Model
) -> None:
    logits = np.zeros(model.vocab.n_tokens, np.float32)
    grammars.json_schema(schema).matcher().mask(logits)
    assert np.isfinite(logits).any()


@pytest.mark.parametrize("pattern", ["(", "a(?=b)", r"(a)\1", "(a{1000}){1000}", "a{1000000}"])
@pytest.mark.slow
def test_expressions_beyond_small_finite_automata_are_rejected(
    pattern: str, grammars: GrammarCompiler
) -> None:
    with pytest.raises(GrammarError):
        grammars.regex(pattern)


def test_accepting_a_forbidden_token_is_an_error(grammars: GrammarCompiler, model: Model) -> None:
    matcher = grammars.regex("[0-9]+").matcher()
    [letter] = model.vocab.tokenize("x", parse_special=False)
    with pytest.raises(GrammarError):
        matcher.accept(letter)


def test_matchers_of_one_grammar_are_independent(grammars: GrammarCompiler, model: Model) -> None:
    grammar = grammars.regex("ab|cd")
    first, second = grammar.matcher(), grammar.matcher()
    [a], [c] = (model.vocab.tokenize(letter, parse_special=False) for letter in "ac")
    first.accept(a)
    second.accept(c)
    with pytest.raises(GrammarError):
        first.accept(c)


# --- with the engine


async def answer_of(
    engine: AsyncEngine, model: Model, prompt: str, params: SamplingParams
) -> tuple[str, Any]:
    text, reason = "", None
    async for output in engine.submit(model.vocab.tokenize(prompt, parse_special=True), params):
        text += output.text
        reason = output.finish_reason
    return text, reason


@pytest.mark.anyio
@pytest.mark.parametrize("temperature", [0.0, 1.2])
async def test_answers_match_their_schema(
    temperature: float, engine: AsyncEngine, model: Model, grammars: GrammarCompiler
) -> None:
    grammar = grammars.json_schema(PERSON)
    for seed in range(3):
        params = SamplingParams(
            max_tokens=80, temperature=temperature, seed=seed, typical_p=0.9, top_p=0.9, grammar=grammar
        )
        text, reason = await answer_of(engine, model, "Describe a person: ", params)
        assert reason is FinishReason.EOS
        jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.anyio
async def test_an_answer_ends_with_its_grammar_under_ignore_eos(
    engine: AsyncEngine, model: Model, grammars: GrammarCompiler
) -> None:
    grammar = grammars.regex("(left|right)!")
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, grammar=grammar)
    text, reason = await answer_of(engine, model, "Which way? ", params)
    assert text in ("left!", "right!")
    assert reason is FinishReason.EOS


@pytest.mark.anyio
async def test_speculation_matches_the_grammar(
    engine: AsyncEngine, model: Model, grammars: GrammarCompiler
) -> None:
    # Drafts copy the prompt, and the grammar forbids every second word of it.
    prompt = "one two three four five six " * 8
    grammar = grammars.regex("(one three five ){4}")
    text, _ = await answer_of(
        engine, model, prompt, SamplingParams(max_tokens=60, temperature=0, grammar=grammar)
    )
    assert text == "one three five " * 4


class FailingMatcher(Matcher):
    """A matcher that fails at the third token."""

    n_masks = 0

    def mask(self, logits: Any) -> None:
        self.n_masks += 1
        if self.n_masks == 3:
            raise GrammarError("too many states")
        super().mask(logits)


@pytest.mark.anyio
async def test_a_failed_matcher_ends_its_request_only(
    engine: AsyncEngine, model: Model, grammars: GrammarCompiler
) -> None:
    class FailingGrammar(Grammar):
        def matcher(self) -> Matcher:
            return FailingMatcher(super().matcher()._native)

    grammar = FailingGrammar(grammars.regex("[a-z ]+")._start)
    prompt = model.vocab.tokenize("Once upon a time", parse_special=False)
    other = engine.submit(prompt, SamplingParams(max_tokens=24, temperature=0, ignore_eos=True))
    params = SamplingParams(max_tokens=20, temperature=0, grammar=grammar)
    with pytest.raises(EngineError, match="too many states"):
        await answer_of(engine, model, "Say: ", params)
    assert len([output async for output in other]) == 24
    assert engine.n_unfinished == 0


def test_control_tokens_are_forbidden_inside_a_string(grammars: GrammarCompiler, model: Model) -> None:
    matcher = grammars.json_schema({"type": "string"}).matcher()
    [quote] = model.vocab.tokenize('"', parse_special=False)
    matcher.accept(quote)
    logits = np.zeros(model.vocab.n_tokens, np.float32)
    matcher.mask(logits)
    allowed = set(np.flatnonzero(np.isfinite(logits)).tolist())
    assert allowed.isdisjoint(model.vocab.control_tokens.values())
    some = random.Random(1).sample(sorted(allowed), 20)
    assert all(model.vocab.piece(token) for token in some)


# --- rewritten keywords


def admits(grammar: Grammar, model: Model, text: str) -> bool:
    tokens = [*model.vocab.tokenize(text, parse_special=False), model.vocab.eos]
    n_accepted: int = grammar.matcher()._native.validate_tokens(tokens)
    return n_accepted == len(tokens)


KINDS = {
    name: {"type": "object", "properties": {"kind": {"const": name}}, "required": ["kind"]}
    for name in ("a", "b")
}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        # pydantic: a discriminated union, and set[Literal["x", "y"]]
        (
            {"$defs": KINDS, "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]},
            ['{"kind": "b"}'],
            ['{"kind": "c"}'],
        ),
        (
            {"type": "array", "items": {"enum": ["x", "y"]}, "uniqueItems": True, "minItems": 1},
            ['["y", "x"]', '["x"]'],
            ['["x", "x"]', "[]"],
        ),
        ({"type": "string", "not": {"enum": ["ab", "-"]}}, ['"a"', '"abc"', '""'], ['"ab"', '"-"']),
        ({"type": "integer", "not": {"const": 0}}, ["-1", "10"], ["0"]),
        (
            {
                "type": "object",
                "properties": {"kind": {"enum": ["a", "b"]}, "n": {"type": "integer"}},
                "required": ["kind"],
                "if": {"properties": {"kind": {"const": "a"}}},
                "then": {"required": ["n"]},
            },
            ['{"kind": "a", "n": 1}', '{"kind": "b"}'],
            ['{"kind": "a"}'],
        ),
        (
            {"type": "object", "properties": {"a": {"type": "integer"}}},
            ['{"a": 1, "b": "x"}'],
            ['{"a": 1, "\\u0061": "x"}', '{"\\u0061": "x"}', '{"a": 1, "a": 2}'],
        ),
        (
            {"properties": {"a": {}}, "additionalProperties": {"type": "null"}, "type": "object"},
            ['{"a": 1, "aa": null}'],
            ['{"a": 1, "\\u0061": null}', '{"b": 1}'],
        ),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2021-02-29"', '"1900-02-29"']),
        ({"type": "string", "format": "time"}, ['"23:59:60Z"'], ['"12:00:60Z"']),
        ({"type": "string", "format": "phone"}, ['"?"'], ["1"]),
        ({"type": "array", "maxItems": 2.0}, ["[1, 2]"], ["[1, 2, 3]"]),
    ],
)
def test_keywords_without_a_native_form_are_enforced(
    schema: Any, valid: list[str], invalid: list[str], grammars: GrammarCompiler, model: Model
) -> None:
    grammar = grammars.json_schema(schema)
    for text in valid:
        assert admits(grammar, model, text), text
    for text in invalid:
        assert not admits(grammar, model, text), text


@pytest.mark.parametrize(
    ("schema", "lost", "valid", "invalid"),
    [
        (
            # zod's e-mail
            {"type": "string", "pattern": r"^(?!\.)(?!.*\.\.)([a-z.]*)[a-z]@([a-z]+\.)+[a-z]{2,}$"},
            "pattern",
            ['"ann@example.com"'],
            ['"ann"'],
        ),
        (
            {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
            "uniqueItems",
            ["[1]"],
            ['["a"]'],
        ),
        ({"oneOf": [{"minimum": 2}, {"maximum": 5}], "type": "integer"}, "oneOf", ["1", "9"], ['"a"']),
        ({"type": "array", "contains": {"const": 1}}, "contains", ["[1]"], ["[]"]),
        ({"type": "object", "minProperties": 2}, "minProperties", ['{"a": 1, "b": 1}'], ['{"a": 1}']),
    ],
)
def test_other_keywords_are_rejected_or_loosened(
    schema: Any, lost: str, valid: list[str], invalid: list[str], grammars: GrammarCompiler, model: Model
) -> None:
    with pytest.raises(GrammarError, match=f"unsupported: {lost}.* at #"):
        grammars.json_schema(schema)
    grammar = grammars.json_schema(schema, exact=False)
    for text in valid:
        assert admits(grammar, model, text), text
    for text in invalid:
        assert not admits(grammar, model, text), text


def test_long_texts_have_no_complement(grammars: GrammarCompiler, model: Model) -> None:
    for length, is_exact in ((60, True), (61, False), (5000, False)):
        text = "x" * length
        assert (adapted({"not": {"const": text}}).losses == ()) is is_exact
        named = {"type": "object", "properties": {text: {}}, "additionalProperties": {"type": "null"}}
        assert admits(grammars.json_schema(named), model, '{"a": null}')


def test_endless_references_and_large_unions_are_rewritten_in_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n_resolved = 0

    def counted(reference: str, root: Schema) -> Schema:
        nonlocal n_resolved
        n_resolved += 1
        assert n_resolved < 100_000  # of 12 ** 12
        return resolved(reference, root)

    for module in (schema_complement, schema_overlap):
        monkeypatch.setattr(module, "resolved", counted)
    parts = {f"p{i}": {"anyOf": [{"$ref": f"#/$defs/p{j}"} for j in range(12)]} for i in range(12)}
    references = [{"$ref": f"#/$defs/{name}"} for name in parts]
    adapted({"$defs": parts, "type": "integer", "not": {"anyOf": references}})
    adapted({"$defs": parts, "type": "integer", "oneOf": references})
    assert n_resolved > 0
