"""Turns, functions and calls are checked where they are made."""

from __future__ import annotations

from typing import Any

import pytest

from app.chat.messages import Message, Tool, ToolCall


@pytest.mark.parametrize("name", ["", "a" * 65, "get weather", "<|im_end|>", "größe", "f\n"])
def test_a_functions_name_is_a_plain_word(name: str) -> None:
    for make in (
        lambda: Tool(name, None, {}),
        lambda: ToolCall("1", name, "{}"),
        lambda: Message("tool", "", name=name),
    ):
        with pytest.raises(ValueError, match=r"function name .* should be 1 to 64 letters"):
            make()


@pytest.mark.parametrize(
    "arguments",
    ["", "[]", "null", '"{}"', "{", "{} {}", "{'a': 1}", '{"a": NaN}', '{"a":' * 5000 + "1" + "}" * 5000],
)
def test_arguments_are_the_json_text_of_an_object(arguments: str) -> None:
    with pytest.raises(ValueError, match="should be the JSON text of an object"):
        ToolCall("1", "f", arguments)


def test_arguments_are_kept_as_text_and_read() -> None:
    call = ToolCall("1", "f", ' {"a" : [1.50, "é"]}')
    assert (call.arguments, call.by_name) == (' {"a" : [1.50, "é"]}', {"a": [1.5, "é"]})


def test_nesting_has_a_limit() -> None:
    def nested(levels: int) -> dict[str, Any]:
        return {"a": nested(levels - 1)} if levels else {}

    deep = '{"a":' * 99 + "{}" + "}" * 99
    assert ToolCall("1", "f", deep).by_name["a"]
    with pytest.raises(ValueError, match="nested deeper than 100 levels"):
        ToolCall("1", "f", '{"a":' + deep + "}")
    assert Tool("f", None, nested(99))
    with pytest.raises(ValueError, match=r"parameters of function 'f': nested deeper than 100 levels"):
        Tool("f", None, nested(100))


def test_parameters_describe_an_object() -> None:
    assert Tool("f", None, {}).schema == {"type": "object", "properties": {}, "additionalProperties": False}
    assert Tool("f", None, {"required": ["a"]}).schema == {
        "type": "object",
        "properties": {},
        "required": ["a"],
    }
    with pytest.raises(ValueError, match=r"parameters of function 'f': type 'array': should be 'object'"):
        Tool("f", None, {"type": "array"})


def test_only_the_assistant_calls() -> None:
    calls = (ToolCall("1", "f", "{}"),)
    assert Message("assistant", tool_calls=calls).content == ""
    with pytest.raises(ValueError, match="only the assistant calls functions"):
        Message("user", "Hello", calls)
