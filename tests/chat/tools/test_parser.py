"""Calls and text of an answer do not depend on how the answer is cut into pieces."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.chat.messages import Tool
from app.chat.tools import ArgumentsDelta, CallDelta, ContentDelta, Delta, ToolCallParser
from app.chat.tools.format import HERMES, ToolFormat

TOOLS = [Tool("add", None, {}), Tool("get", None, {}), Tool("get_time", None, {})]
BARE = replace(
    HERMES, begin="", end="", separator=None, middle='", "parameters": ', arguments_key="parameters"
)
LIST = replace(HERMES, begin="[TOOL_CALLS] [", end="]", separator=", ")
TAGGED_LIST = replace(HERMES, begin="<TOOLCALL>[", end="]</TOOLCALL>", separator=", ")
FORMATS = {"hermes": HERMES, "bare": BARE, "list": LIST, "tagged list": TAGGED_LIST}
Calls = list[tuple[str, str]]


def parse(pieces: Sequence[str], format_: ToolFormat = HERMES) -> tuple[str, Calls]:
    """The text and calls of an answer. Checks the deltas too."""
    parser = ToolCallParser(format_, TOOLS)
    deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.finish()
    return gathered(deltas)


def gathered(deltas: Sequence[Delta]) -> tuple[str, Calls]:
    content, calls, ids = "", [], set()
    for delta in deltas:
        if isinstance(delta, ContentDelta):
            assert delta.text
            content += delta.text
        elif isinstance(delta, CallDelta):
            assert delta.index == len(calls)
            assert re.fullmatch(r"call_[A-Za-z0-9]{24}", delta.id)
            ids.add(delta.id)
            calls.append((delta.name, ""))
        else:
            assert delta.text
            assert delta.index == len(calls) - 1, "arguments belong to the last call"
            name, arguments = calls[-1]
            calls[-1] = (name, arguments + delta.text)
    assert len(ids) == len(calls)
    return content, calls


ADD = r'{"name": "add", "arguments": {"a": [1, {"b": "\"}"}]}}'
ADDED = ("add", r'{"a": [1, {"b": "\"}"}]}')
BARE_ADD = ADD.replace("arguments", "parameters")
GET = '{"name": "get", "arguments": {}}'


@pytest.mark.parametrize(
    ("format_", "text", "content", "calls"),
    [
        (HERMES, f"<tool_call>\n{ADD}\n</tool_call>", "", [ADDED]),
        (HERMES, f"Well.\n\n<tool_call>\n{ADD}\n</tool_call>\n", "Well.", [ADDED]),
        (
            HERMES,
            f"<tool_call>\n{ADD}\n</tool_call>\n<tool_call>\n{GET}\n</tool_call>",
            "",
            [ADDED, ("get", "{}")],
        ),
        (HERMES, f"<tool_call>{ADD}</tool_call> Done. ", " Done. ", [ADDED]),
        (LIST, f"[TOOL_CALLS] [{ADD}]", "", [ADDED]),
        (LIST, f"[TOOL_CALLS] [{ADD}, {GET}]", "", [ADDED, ("get", "{}")]),
        (LIST, f'[TOOL_CALLS] [{ADD[:-1]}, "id": "Abc012345"}}, {GET}]', "", [ADDED, ("get", "{}")]),
        (TAGGED_LIST, f"Well. <TOOLCALL>[{ADD}, {GET}]</TOOLCALL>", "Well.", [ADDED, ("get", "{}")]),
        (BARE, BARE_ADD, "", [ADDED]),
    ],
)
def test_calls_are_separated_from_text(format_: ToolFormat, text: str, content: str, calls: Calls) -> None:
    assert parse([text], format_) == (content, calls)
    assert parse(list(text), format_) == (content, calls)


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        (HERMES, f"<tool_call>{ADD}</tool_call>"),
        (HERMES, f" <tool_call> \n\n {ADD} \n\n </tool_call>"),
        (HERMES, "<tool_call>" + ADD.replace(', "arguments": ', ' ,\n"arguments" :').replace("{", "{ ", 1)),
        (LIST, f"[TOOL_CALLS]\n[ {ADD} ]"),
        (BARE, f" \n{BARE_ADD}"),
        (BARE, '{"type": "function", ' + BARE_ADD[1:]),
        (BARE, '\n{ "type":"function" ,\n' + BARE_ADD[1:]),
    ],
)
def test_white_space_in_a_call_is_ignored(format_: ToolFormat, text: str) -> None:
    assert parse([text], format_) == parse(list(text), format_) == ("", [ADDED])


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        (HERMES, f"<tool_call>\n{ADD}"),
        (HERMES, f"<tool_call>\n{ADD}\n</tool_"),
        (HERMES, f"<tool_call>\n{ADD}\n</tool_call>\n<tool_"),
        (LIST, f"[TOOL_CALLS] [{ADD}"),
        (LIST, f"[TOOL_CALLS] [{ADD},"),
        (TAGGED_LIST, f"<TOOLCALL>[{ADD}]</TOOL"),
    ],
)
def test_an_incomplete_end_marker_is_dropped(format_: ToolFormat, text: str) -> None:
    assert parse([text], format_) == parse(list(text), format_) == ("", [ADDED])


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        (HERMES, ""),
        (HERMES, " \n "),
        (HERMES, "  2 < 3 <tool> and <tool_ca  "),
        (HERMES, "<tool_call>"),
        (HERMES, "<tool_call>\n"),
        (HERMES, "See <tool_call>add</tool_call>."),
        (HERMES, '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>\n'),
        (HERMES, '<tool_call>{"name": "get"}</tool_call>'),
        (HERMES, '<tool_call>{"name": ["get"], "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "get", "arguments": "{}"}</tool_call>'),
        (HERMES, '<tool_call>{"name": "get", "arguments": null}</tool_call>'),
        (HERMES, "<tool_call>{}</tool_call>"),
        (HERMES, "<tool_call>[]</tool_call>"),
        (HERMES, "<tool_call>{'name': 'get', 'arguments': {}}</tool_call>"),
        (HERMES, '<tool_call>{"name": "get"'),
        (HERMES, "{" + GET[1:]),
        (LIST, "[TOOL_CALL] [TOOL_CALLS"),
        (BARE, " { 2 < 3 "),
        (BARE, '{"answer": 42}\n'),
        (BARE, '{"name'),
        (BARE, '{"name"}'),
        (BARE, '{"a \\" b": 1}'),
        (BARE, f"Like {GET}"),
        (BARE, "[1, 2]"),
    ],
)
def test_invalid_calls_are_text(format_: ToolFormat, text: str) -> None:
    assert parse([text], format_) == (text, [])
    assert parse(list(text), format_) == (text, [])


def test_calls_after_invalid_ones_are_parsed() -> None:
    unknown = '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'
    assert parse(list(f"{unknown} <tool_call> <tool_call>{GET}</tool_call>")) == (
        f"{unknown} <tool_call>",
        [("get", "{}")],
    )
    assert parse(list(f"<tool_call>{GET}</tool_call>\n<tool_call>?")) == ("\n<tool_call>?", [("get", "{}")])
    assert parse(list(f"[TOOL_CALLS][{GET}, 1]"), LIST) == (", 1]", [("get", "{}")])
    assert parse(list(f"[TOOL_CALLS][{GET}, {{}}]"), LIST) == (", {}]", [("get", "{}")])


def test_arguments_are_streamed() -> None:
    parser = ToolCallParser(HERMES, TOOLS)
    assert parser.feed('Well <tool_call>\n{"name": "add", "arguments": ') == [ContentDelta("Well")]
    call, first = parser.feed('{"a": "')
    assert isinstance(call, CallDelta)
    assert (call.name, first) == ("add", ArgumentsDelta(0, '{"a": "'))
    assert parser.feed('}"') == [ArgumentsDelta(0, '}"')]
    assert parser.feed("}") == [ArgumentsDelta(0, "}")]
    assert parser.feed("}\n</tool_call>") == []
    assert parser.finish() == []


def test_a_truncated_answer_has_incomplete_arguments() -> None:
    assert parse(['<tool_call>\n{"name": "add", "arguments": {"a": [1']) == (
        "",
        [("add", '{"a": [1')],
    )


def test_text_is_streamed_once_it_cannot_be_a_call() -> None:
    parser = ToolCallParser(HERMES, TOOLS)
    assert parser.feed("One < ") == [ContentDelta("One <")]
    assert parser.feed("two <tool") == [ContentDelta(" two")]
    assert parser.feed("s> three") == [ContentDelta(" <tools> three")]
    parser = ToolCallParser(BARE, TOOLS)
    assert parser.feed("\n") == []
    assert parser.feed("One {") == [ContentDelta("\nOne {")]
    assert parser.feed(" ") == [ContentDelta(" ")]
    parser = ToolCallParser(BARE, TOOLS)
    assert parser.feed('{ "na') == []
    assert parser.feed('val": ') == [ContentDelta('{ "naval": ')]
    assert ToolCallParser(BARE, TOOLS).feed("{ 2") == [ContentDelta("{ 2")]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=6)
    | st.sampled_from(['"}', "</tool_call>", "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.builds(
    json.dumps, st.dictionaries(st.text(max_size=4), JSON, max_size=3), ensure_ascii=st.booleans()
)
TEXTS = st.text(st.characters(exclude_characters="<[{", exclude_categories=["Z", "C"]), max_size=8)


def cut(text: str, cuts: Sequence[int]) -> list[str]:
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(bounds)]


@settings(deadline=None)
@given(
    text=TEXTS,
    calls=st.lists(st.tuples(st.sampled_from(["add", "get", "get_time"]), ARGUMENTS), min_size=1, max_size=3),
    cuts=st.lists(st.integers(min_value=0), max_size=12),
)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.slow
def test_written_calls_are_parsed_for_any_cuts(name: str, text: str, calls: Calls, cuts: list[int]) -> None:
    if name == "bare":
        text, calls = "", calls[:1]
    answer = text + FORMATS[name].write(calls)
    assert parse(cut(answer, cuts), FORMATS[name]) == (text, calls)


PIECES = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "<TOOLCALL>",
            "</TOOLCALL>",
            "<tool",
            "</",
            "[",
            "]",
        ),
        *(ADD, GET, GET[:20], GET[20:], '{"name": "unknown", "arguments": {}}', "{", "}", ",", '"', "\\"),
        *(" ", "\n", "text", '{"name": "get", "parameters": {"a": '),
    ]
)


@settings(deadline=None, max_examples=300)
@given(
    pieces=st.lists(PIECES, max_size=10),
    cuts=st.lists(st.integers(min_value=0), max_size=12),
)
@example(pieces=["<tool_call>", GET, "</tool_call>", " ", "<tool"], cuts=[])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.slow
def test_random_answers_are_parsed_equally_for_any_cuts(
    name: str, pieces: list[str], cuts: list[int]
) -> None:
    answer = "".join(pieces)
    content, calls = parse([answer], FORMATS[name])
    assert parse(cut(answer, cuts), FORMATS[name]) == (content, calls)
    assert parse(list(answer), FORMATS[name]) == (content, calls)
    if not calls:
        assert content == answer
