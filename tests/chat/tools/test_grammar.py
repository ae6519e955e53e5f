"""Answers that match the grammar are text, or calls with valid arguments."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from app.chat.messages import Tool
from app.chat.tools import ArgumentsDelta, CallDelta, ToolCallParser, tool_grammar
from app.chat.tools.format import HERMES, ToolFormat, special_pattern

BARE = replace(
    HERMES, begin="", end="", separator=None, middle='", "parameters": ', arguments_key="parameters"
)
LIST = replace(HERMES, begin="[TOOL_CALLS] [", end="]", separator=", ")
FORMATS = {"hermes": HERMES, "bare": BARE, "list": LIST}

CITY = {"type": "string", "enum": ["Paris", "Oslo"]}
GET = Tool(
    "get",
    "Gets",
    {"type": "object", "properties": {"city": CITY}, "required": ["city"], "additionalProperties": False},
)
GET_TIME = Tool(
    "get_time",
    None,
    {
        "properties": {"zone": {"$ref": "#/$defs/zone"}, "now": {"type": "boolean"}},
        "required": ["zone"],
        "additionalProperties": False,
        "$defs": {"zone": {"type": "integer", "minimum": -12, "maximum": 12}},
    },
)
NOTHING = Tool("nothing", None, {})
TOOLS = [GET, GET_TIME, NOTHING]

BYTES = [bytes([byte]) for byte in range(256)]
SPECIAL = {"[TOOL_CALLS]": 256, "<tool_call>": 257, "</tool_call>": 258}
END = 259


class Vocabulary:
    """Bytes, special tokens, and tokens that span parts of the grammars."""

    pairs = (b">\n", b'{"', b'",', b'"}', b"}}", b"}]", b"<tool_call>", b'{"name": "', b' "a', b"\n</")
    eos_token_id = END
    bos_token_id = None

    def __init__(self) -> None:
        special = [b"\xff" + text.encode() for text in SPECIAL]
        self.tokens = [*BYTES, *special, b"\xff<end>", *self.pairs]
        self.special_token_ids = [*SPECIAL.values(), END]

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


TOKENIZER = LLTokenizer(TokenizerWrapper(Vocabulary()), n_vocab=len(Vocabulary().tokens), eos_token=END)


def grammar(
    format_: ToolFormat,
    choice: str,
    *,
    tools: list[Tool] = TOOLS,
    parallel: bool = True,
    special: dict[str, int] | None = None,
) -> LLMatcher:
    text = tool_grammar(format_, tools, choice=choice, parallel=parallel, special_tokens=special or {})
    matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_lark(text))
    assert not matcher.is_error(), f"{matcher.get_error()}\n{text}"
    return matcher


def tokens_of(text: str, special: dict[str, int]) -> list[int]:
    parts = special_pattern(special).split(text)
    markers = [special[marker] for marker in special_pattern(special).findall(text)]
    tokens = list(parts[0].encode())
    for marker, part in zip(markers, parts[1:], strict=True):
        tokens += [marker, *part.encode()]
    return tokens


def n_accepted(matcher: LLMatcher, tokens: list[int]) -> int:
    """The number of tokens that the grammar accepts."""
    start = matcher.deep_copy()
    count: int = start.validate_tokens(tokens)
    return count


def accepts(matcher: LLMatcher, text: str, special: dict[str, int] | None = None) -> bool:
    """Whether the text is a complete answer."""
    tokens = [*tokens_of(text, special or {}), END]
    return n_accepted(matcher, tokens) == len(tokens)


def call(format_: ToolFormat, *calls: tuple[str, str]) -> str:
    return format_.write(calls)


OSLO = ("get", '{"city": "Oslo"}')
ZONE = ("get_time", '{"zone": -3, "now": true}')


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("name", FORMATS)
def test_valid_calls_are_accepted(name: str, choice: str) -> None:
    matcher = grammar(FORMATS[name], choice)
    for pair in (OSLO, ZONE, ("get_time", '{"zone": 12}'), ("nothing", "{}")):
        assert accepts(matcher, call(FORMATS[name], pair))


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "pair",
    [
        ("get", "{}"),
        ("get", '{"city": "Rome"}'),
        ("get", '{"city": "Oslo"'),
        ("get", "[]"),
        ("get", '{\n"city": "Oslo"}'),
        ("get_time", '{"zone": 13}'),
        ("get_time", '{"zone": 1, "other": 1}'),
        ("get_time", '{"city": "Oslo"}'),
        ("nothing", '{"a": 1}'),
        ("unknown", "{}"),
        ("get_", "{}"),
    ],
)
def test_invalid_calls_are_rejected(name: str, choice: str, pair: tuple[str, str]) -> None:
    assert not accepts(grammar(FORMATS[name], choice), call(FORMATS[name], pair))


@pytest.mark.parametrize("name", FORMATS)
def test_required_accepts_calls_only(name: str) -> None:
    matcher = grammar(FORMATS[name], "required")
    assert not accepts(matcher, "")
    for text in ("Well", " ", "\n"):
        assert n_accepted(matcher, list(text.encode())) == 0
    assert not accepts(matcher, call(FORMATS[name], OSLO) + " ")


@pytest.mark.parametrize("name", FORMATS)
def test_a_named_choice_accepts_one_call_of_that_tool(name: str) -> None:
    matcher = grammar(FORMATS[name], "get")
    assert accepts(matcher, call(FORMATS[name], OSLO))
    assert not accepts(matcher, call(FORMATS[name], ZONE))
    assert not accepts(matcher, call(FORMATS[name], OSLO, OSLO))
    with pytest.raises(ValueError, match=r"choice 'got': should be auto, required, or the name of one"):
        grammar(FORMATS[name], "got")


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_several_calls_need_parallel_calls_and_a_separator(choice: str) -> None:
    for format_ in (HERMES, LIST):
        assert accepts(grammar(format_, choice), call(format_, OSLO, ZONE, OSLO))
        assert not accepts(grammar(format_, choice, parallel=False), call(format_, OSLO, ZONE))
        assert accepts(grammar(format_, choice, parallel=False), call(format_, OSLO))
    assert not accepts(grammar(BARE, choice), call(BARE, OSLO, ZONE))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "text", ["", "Well.\n", " 2 < 3 {[ \U0001f642", '{"a": 1}', "<tool", "[1, 2]", '{ "nam']
)
def test_auto_accepts_text(name: str, text: str) -> None:
    assert accepts(grammar(FORMATS[name], "auto"), text)


@pytest.mark.parametrize("format_", [HERMES, LIST])
def test_after_the_marker_auto_accepts_calls_only(format_: ToolFormat) -> None:
    matcher = grammar(format_, "auto")
    text = f"Let me see. {format_.marker}"
    assert accepts(matcher, f"Let me see. {call(format_, OSLO)}")
    assert not accepts(matcher, text)
    assert not accepts(matcher, f"{text} is what I write")
    assert not accepts(matcher, f"{text} is it. {call(format_, OSLO)}")
    assert not accepts(matcher, f"{call(format_, OSLO)} That is all")


@pytest.mark.parametrize(
    "opening",
    ['{"name": "', '{"name":"', '\n{ "name" : "', '{\n  "name": "', '{"type": "function", "name": "'],
)
def test_without_a_marker_the_opening_of_a_call_decides(opening: str) -> None:
    matcher = grammar(BARE, "auto")
    assert accepts(matcher, opening + 'get", "parameters": {"city": "Oslo"}}')
    assert not accepts(matcher, opening + 'get", "parameters": {"city": "Rome"}}')
    assert not accepts(matcher, opening + 'Ann", "age": 42}')
    for text in (opening[:-1], "Like " + opening, opening[:-1] + "42}"):
        assert accepts(matcher, text)


@pytest.mark.parametrize("name", ["hermes", "list"])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_markers_that_are_special_tokens_are_those_tokens(name: str, choice: str) -> None:
    format_ = FORMATS[name]
    matcher = grammar(format_, choice, special=SPECIAL)
    assert accepts(matcher, call(format_, OSLO), SPECIAL)
    assert accepts(matcher, call(format_, OSLO, ZONE), SPECIAL)
    assert not accepts(matcher, call(format_, ("get", "{}")), SPECIAL)
    if choice == "auto":
        assert accepts(matcher, "Let me see. " + call(format_, OSLO), SPECIAL)
        assert accepts(matcher, "Let me see.", SPECIAL)
        assert accepts(matcher, "", SPECIAL)
        assert not accepts(matcher, "Let me see. " + format_.marker, SPECIAL)
    else:
        assert not accepts(matcher, call(format_, OSLO))


def test_special_tokens_outside_the_format_are_rejected() -> None:
    matcher = grammar(LIST, "auto", special=SPECIAL)
    assert n_accepted(matcher, [ord("a"), SPECIAL["<tool_call>"]]) == 1


def test_a_call_can_have_an_id() -> None:
    matcher = grammar(replace(LIST, id_text=(', "id": "', '"')), "required")
    assert accepts(matcher, call(LIST, OSLO, ZONE))
    with_id = call(LIST, OSLO).replace("}}", '}, "id": "Abc012345"}')
    assert accepts(matcher, with_id)
    assert not accepts(matcher, with_id.replace("5", ""))


def test_a_schema_cannot_change_options_of_the_grammar() -> None:
    loose = Tool(
        "get", None, {**GET.parameters, "x-guidance": {"lenient": True, "whitespace_flexible": True}}
    )
    matcher = grammar(HERMES, "required", tools=[loose])
    assert accepts(matcher, call(HERMES, OSLO))
    assert not accepts(matcher, call(HERMES, ("get", '{ "city": "Oslo"}')))


@pytest.mark.parametrize("text", ["é \U0001f642", '"quoted" \\ /', "start: /.*/\n%json", "\ud800", "<[1]>"])
def test_texts_of_a_schema_are_not_parsed_as_grammar(text: str) -> None:
    schema = {"properties": {text: {"const": text, "description": text}}, "required": [text]}
    written = json.dumps({text: text}, ensure_ascii=False).encode("utf-8", "replace").decode()
    matcher = grammar(HERMES, "required", tools=[Tool("get", text, schema)])
    assert accepts(matcher, call(HERMES, ("get", written)))


@pytest.mark.parametrize("special", [{}, SPECIAL], ids=["text", "special"])
@pytest.mark.parametrize("choice", ["auto", "required", "get_time"])
@pytest.mark.parametrize("name", FORMATS)
def test_random_answers_can_be_parsed(name: str, choice: str, special: dict[str, int]) -> None:
    """Answers of random tokens that the grammar allows are text, or calls with valid arguments."""
    format_ = FORMATS[name]
    matcher = grammar(format_, choice, special=special)
    source = random.Random(f"{name} {choice} {len(special)}")
    for _ in range(15):
        answer = random_answer(
            matcher.deep_copy(), source, special, begin=format_.marker if choice == "auto" else ""
        )
        parser = ToolCallParser(format_, TOOLS)
        deltas = [*parser.feed(answer), *parser.finish()]
        names = [delta.name for delta in deltas if isinstance(delta, CallDelta)]
        if choice != "auto" or format_.marker:
            assert names, answer
        for index, called in enumerate(names):
            parts = [d.text for d in deltas if isinstance(d, ArgumentsDelta) and d.index == index]
            assert_valid(called, json.loads("".join(parts)))


def random_answer(matcher: LLMatcher, source: random.Random, special: dict[str, int], *, begin: str) -> str:
    tokens = tokens_of(begin, special)
    assert matcher.consume_tokens(tokens)
    while not matcher.is_stopped():
        mask = matcher.compute_logit_bias()
        allowed = [token for token, bias in enumerate(mask) if bias]
        may_end = END in allowed and (len(tokens) > 400 or source.random() < 0.3)
        tokens.append(END if may_end else source.choice(allowed))
        assert matcher.consume_token(tokens[-1])
    names = {token: text.encode() for text, token in special.items()}
    pieces = Vocabulary().tokens
    return b"".join(names.get(t, b"" if t == END else pieces[t]) for t in tokens).decode("utf-8", "replace")


def assert_valid(name: str, arguments: dict[str, Any]) -> None:
    if name == "get":
        assert arguments["city"] in CITY["enum"]
    elif name == "get_time":
        assert -12 <= arguments["zone"] <= 12
        assert set(arguments) <= {"zone", "now"}
        assert isinstance(arguments.get("now", True), bool)
    else:
        assert (name, arguments) == ("nothing", {})
