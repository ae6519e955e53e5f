"""The format of calls is learned from the output of a template."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.chat.messages import ToolCall
from app.chat.tools.format import HERMES, ToolFormat, learn_format

CALLS = (ToolCall("id0000001", "find", '{"a": "x"}'), ToolCall("id0000002", "find", '{"a": "y"}'))
FIRST, SECOND = ('{"name": "find", "arguments": {"a": "x"}}', '{"name": "find", "arguments": {"a": "y"}}')
PROMPT = "<turn>user\nWhy find {it}?<end><turn>model\n"
LIST = replace(HERMES, begin="[CALLS] [", end="]", separator=", ")
BARE = replace(
    HERMES, begin="", end="", separator=None, middle='", "parameters": ', arguments_key="parameters"
)


def learn(one: str, two: str | None = None, plain: str = "Because<end>\n") -> ToolFormat | None:
    return learn_format(
        CALLS,
        "Because",
        prompt=PROMPT,
        plain=PROMPT + plain,
        one=f"{PROMPT}{one}<end>\n",
        two=f"{PROMPT}{two}<end>\n" if two else None,
    )


def test_calls_in_blocks_are_learned() -> None:
    calls = [f"<tool_call>\n{call}\n</tool_call>" for call in (FIRST, SECOND)]
    assert learn(calls[0], "\n".join(calls)) == HERMES
    thinking = "<think>\n\n</think>\n\n"
    assert learn(thinking + calls[0], thinking + "\n".join(calls), f"{thinking}Because<end>\n") == HERMES


def test_calls_in_a_list_are_learned() -> None:
    assert learn(f"[CALLS] [{FIRST}]", f"[CALLS] [{FIRST}, {SECOND}]") == LIST


def test_calls_with_ids_are_learned() -> None:
    first, second = (
        f'{text[:-1]}, "id": "{call.id}"}}' for text, call in zip((FIRST, SECOND), CALLS, strict=True)
    )
    with_ids = replace(LIST, id_text=(', "id": "', '"'))
    assert learn(f"[CALLS] [{first}]", f"[CALLS] [{first}, {second}]") == with_ids
    assert with_ids.write([("find", '{"a": "x"}')]) == f"[CALLS] [{FIRST}]"


def test_a_single_call_without_markers_is_learned() -> None:
    assert learn(FIRST.replace("arguments", "parameters")) == BARE


def test_other_and_additional_keys_are_learned() -> None:
    learned = learn('{"type": "function",\n "tool_name" : "find", "parameters":{"a": "x"}, "b": {}}')
    assert learned is not None
    assert (learned.name_key, learned.arguments_key) == ("tool_name", "parameters")
    assert (
        learned.write([("f", "{}")]) == '{"type": "function",\n "tool_name" : "f", "parameters":{}, "b": {}}'
    )


@pytest.mark.parametrize(
    "two",
    [
        "[CALLS] [" + FIRST + ", " + SECOND + "] and more",
        "[CALLS] 2 [" + FIRST + ", " + SECOND + "]",
        "[CALLS] [" + FIRST + ", " + SECOND.replace('"name"', '"n": 2, "name"') + "]",
        "[CALLS] [" + FIRST + "]",
        None,
    ],
)
def test_a_format_has_no_separator_if_two_calls_differ_from_one(two: str | None) -> None:
    assert learn(f"[CALLS] [{FIRST}]", two) == replace(LIST, separator=None)


def test_white_space_after_a_turn_is_ignored() -> None:
    learned = learn(f"[CALLS] [{FIRST}]", f"[CALLS] [{FIRST}, {SECOND}]", plain="Because\n<end>\n\n")
    assert learned == LIST
    assert learn(f"[CALLS] [{FIRST}]\n", f"[CALLS] [{FIRST}, {SECOND}]\n") == LIST


def test_the_begin_of_a_call_starts_after_the_prompt() -> None:
    learned = learn(f"<|call|>{FIRST}<|/call|>", plain="<|content|>Because<end>\n")
    assert learned is not None
    assert (learned.begin, learned.end) == ("<|call|>", "<|/call|>")


def test_a_call_can_lack_a_thought_of_the_prompt() -> None:
    one = "<model>\n<call>" + FIRST + "</call><end>"
    learned = learn_format(
        CALLS,
        "Because",
        prompt="<model>\n<think>\n",
        plain="<model>\n<think>\nBecause<end>",
        one=one,
        two=None,
    )
    assert learned is not None
    assert (learned.begin, learned.end) == ("<call>", "</call>")


@pytest.mark.parametrize(
    "one",
    [
        "",
        "find",
        "<function=find>\n<parameter=a>x</parameter>\n</function>",
        'find[ARGS]{"a": "x"}',
        "[find(a='x')]",
        '{"name": "find", "arguments": "{\\"a\\": \\"x\\"}"}',
        "{'name': 'find', 'arguments': {'a': 'x'}}",
        '{"arguments": {"a": "x"}, "name": "find"}',
        '{"id": "id0000001", "name": "find", "arguments": {"a": "x"}}',
        '{"name": "find", "arguments": {"a": "x"}',
        '{"name": "find"}',
    ],
)
def test_other_formats_are_not_learned(one: str) -> None:
    assert learn(one) is None


def test_calls_whose_turn_ends_differently_are_not_learned() -> None:
    assert learn(FIRST, plain="Because<other end>\n") is None


@pytest.mark.parametrize(
    ("format_", "marker"),
    [
        (HERMES, "<tool_call>"),
        (LIST, "[CALLS]"),
        (BARE, ""),
        (replace(BARE, begin="[\n", end="\n]"), ""),
        (replace(LIST, begin="Action: ```json\n[\n    ", end="\n]\n```"), "Action: ```json"),
    ],
)
def test_the_marker_is_the_first_word_of_a_call(format_: ToolFormat, marker: str) -> None:
    assert format_.marker == marker


def test_markers_are_the_special_tokens_of_a_format() -> None:
    assert HERMES.markers(["<tool_call>", "<s>", "</tool", "</tool_call>"]) == {"<tool_call>", "</tool_call>"}
    assert LIST.markers(["[CALLS]", "[CALL", "", " ["]) == {"[CALLS]", " ["}
    assert BARE.markers(["<s>"]) == frozenset()
    assert HERMES.markers([]) == frozenset()
