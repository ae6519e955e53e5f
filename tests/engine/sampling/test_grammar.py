"""Answers within a grammar: masks, hard schemas, what is refused."""

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
from app.engine.sampling.grammar import Grammar, GrammarCompiler, GrammarError, Matcher
from app.engine.sampling.json_schema import schema_defect
from app.engine.sampling.params import SamplingParams
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


def wander(matcher: Matcher, model: Model, seed: int, n_most: int = 200) -> str | None:
    """A text of tokens drawn blindly from those that may follow; None where it did not come to an end."""
    vocab, rng = model.vocab, np.random.default_rng(seed)
    text, detokenizer = "", Detokenizer(vocab)
    for _ in range(n_most):
        logits = rng.normal(size=vocab.n_tokens).astype(np.float32)
        logits[list(vocab.end_of_generation)] += 8  # or arrays and texts would grow for ever
        matcher.mask(logits)
        token = int(logits.argmax())
        assert np.isfinite(logits[token]), "something may always follow, were it the end"
        if token in vocab.end_of_generation:
            return text
        matcher.accept(token)
        text += detokenizer.push(token)
        if matcher.is_finished:
            return text + detokenizer.flush()
    return None


@pytest.mark.parametrize("name", HARD_SCHEMAS)
def test_whatever_is_drawn_within_a_schema_validates(
    name: str, grammars: GrammarCompiler, model: Model
) -> None:
    schema = HARD_SCHEMAS[name]
    grammar = grammars.json_schema(schema)
    texts = [wander(grammar.matcher(), model, seed) for seed in range(12)]
    whole = [text for text in texts if text is not None]
    assert whole, "not one text came to its end"
    for text in whole:
        jsonschema.validate(json.loads(text), schema)


def test_a_regular_expression_is_matched_as_a_whole(grammars: GrammarCompiler, model: Model) -> None:
    pattern = r"(yes|no), [0-9]{1,3}( \p{Lu}+)?"
    for seed in range(8):
        text = wander(grammars.regex(pattern).matcher(), model, seed)
        assert text is not None
        assert re.fullmatch(r"(yes|no), [0-9]{1,3}( [^\W\d_a-z]+)?", text), text


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "not": {"required": ["a"]}}, "not"),
        ({"type": "object", "propertyNames": {"pattern": "^a"}, "minProperties": 3}, "propertyNames"),
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
def test_what_cannot_be_kept_to_is_refused_by_name(
    schema: Any, named: str, grammars: GrammarCompiler
) -> None:
    with pytest.raises(GrammarError) as refusal:
        grammars.json_schema(schema)
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


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
def test_what_looks_like_what_is_refused_is_not(schema: Any, grammars: GrammarCompiler, model: Model) -> None:
    logits = np.zeros(model.vocab.n_tokens, np.float32)
    grammars.json_schema(schema).matcher().mask(logits)
    assert np.isfinite(logits).any()


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/allOf/" + "9" * 5000, "allOf": [True]},
        {"$ref": "#/allOf/³", "allOf": [True]},
        {"type": [{}], "required": [[]], "minItems": "x", "properties": [], "anyOf": [], "prefixItems": 1},
        {"type": ["array", "object"], "required": [[], {}], "minItems": -(10**30), "items": [[]]},
        {"multipleOf": "x", "$ref": 3, "allOf": {}},
    ],
)
def test_any_json_may_be_looked_at_as_a_schema(schema: Any) -> None:
    assert schema_defect(schema) is None


@pytest.mark.parametrize("step", [1, -1])
def test_long_chains_are_followed_in_a_few_rounds(step: int) -> None:
    first, last = (0, 2000)[::step]
    chain = {f"p{i}": {"$ref": f"#/properties/p{i + step}"} for i in range(first, last, step)}
    assert schema_defect({"properties": chain | {f"p{last}": {"type": "null"}}}) is None
    endless = {"properties": chain | {f"p{last}": {"$ref": f"#/properties/p{last}"}}}
    assert schema_defect(endless) == f"no finite text satisfies it: #/properties/p{last} requires itself"


@pytest.mark.parametrize("pattern", ["(", "a(?=b)", r"(a)\1", "(a{1000}){1000}", "a{1000000}"])
def test_an_expression_beyond_small_finite_automata_is_refused(
    pattern: str, grammars: GrammarCompiler
) -> None:
    with pytest.raises(GrammarError):
        grammars.regex(pattern)


def test_a_token_that_cannot_follow_is_an_error(grammars: GrammarCompiler, model: Model) -> None:
    matcher = grammars.regex("[0-9]+").matcher()
    [letter] = model.vocab.tokenize("x", parse_special=False)
    with pytest.raises(GrammarError):
        matcher.accept(letter)


def test_texts_of_one_grammar_do_not_touch_each_other(grammars: GrammarCompiler, model: Model) -> None:
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
async def test_answers_validate(
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
async def test_an_answer_ends_with_its_grammar_even_where_ends_are_ignored(
    engine: AsyncEngine, model: Model, grammars: GrammarCompiler
) -> None:
    grammar = grammars.regex("(left|right)!")
    params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, grammar=grammar)
    text, reason = await answer_of(engine, model, "Which way? ", params)
    assert text in ("left!", "right!")
    assert reason is FinishReason.EOS


@pytest.mark.anyio
async def test_speculation_keeps_to_the_grammar(
    engine: AsyncEngine, model: Model, grammars: GrammarCompiler
) -> None:
    # The prompt tempts to go on by copying; the grammar forbids every second word of it.
    prompt = "one two three four five six " * 8
    grammar = grammars.regex("(one three five ){4}")
    text, _ = await answer_of(
        engine, model, prompt, SamplingParams(max_tokens=60, temperature=0, grammar=grammar)
    )
    assert text == "one three five " * 4


class Failing(Matcher):
    """A matcher that reaches its limits at the third token."""

    n_masks = 0

    def mask(self, logits: Any) -> None:
        self.n_masks += 1
        if self.n_masks == 3:
            raise GrammarError("too many states")
        super().mask(logits)


@pytest.mark.anyio
async def test_a_grammar_beyond_its_limits_ends_one_answer_alone(
    engine: AsyncEngine, model: Model, grammars: GrammarCompiler
) -> None:
    class Brittle(Grammar):
        def matcher(self) -> Matcher:
            return Failing(super().matcher()._native)

    grammar = Brittle(grammars.regex("[a-z ]+")._start)
    prompt = model.vocab.tokenize("Once upon a time", parse_special=False)
    other = engine.submit(prompt, SamplingParams(max_tokens=24, temperature=0, ignore_eos=True))
    params = SamplingParams(max_tokens=20, temperature=0, grammar=grammar)
    with pytest.raises(EngineError, match="too many states"):
        await answer_of(engine, model, "Say: ", params)
    assert len([output async for output in other]) == 24
    assert engine.n_unfinished == 0


def test_random_json_is_not_shifted_by_control_tokens(grammars: GrammarCompiler, model: Model) -> None:
    """No control token is ever allowed inside a text, whatever it is called."""
    matcher = grammars.json_schema({"type": "string"}).matcher()
    [quote] = model.vocab.tokenize('"', parse_special=False)
    matcher.accept(quote)
    logits = np.zeros(model.vocab.n_tokens, np.float32)
    matcher.mask(logits)
    allowed = set(np.flatnonzero(np.isfinite(logits)).tolist())
    assert allowed.isdisjoint(model.vocab.control_tokens.values())
    some = random.Random(1).sample(sorted(allowed), 20)
    assert all(model.vocab.piece(token) for token in some)
