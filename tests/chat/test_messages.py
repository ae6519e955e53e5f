"""Constructors of messages, tools and calls reject invalid values."""

from __future__ import annotations

from typing import Any

import pytest

from app.chat.messages import Message, Tool, ToolCall


@pytest.mark.parametrize("name", ["", "a" * 129, "get weather", "<|im_end|>", "größe", "f\n"])
def test_a_function_name_has_1_to_128_letters_digits_and_dashes(name: str) -> None:
    for make in (
        lambda: Tool(name, None, {}),
        lambda: ToolCall("1", name, "{}"),
        lambda: Message("tool", "", name=name),
    ):
        with pytest.raises(ValueError, match=r"function name .* should be 1 to 128 letters"):
            make()


@pytest.mark.parametrize(
    "arguments",
    ["", "[]", "null", '"{}"', "{", "{} {}", "{'a': 1}", '{"a": NaN}', '{"a":' * 5000 + "1" + "}" * 5000],
)
def test_arguments_other_than_a_json_object_are_rejected(arguments: str) -> None:
    with pytest.raises(ValueError, match="should be the JSON text of an object"):
        ToolCall("1", "f", arguments)


def test_arguments_are_available_as_text_and_parsed() -> None:
    call = ToolCall("1", "f", ' {"a" : [1.50, "é"]}')
    assert (call.arguments, call.by_name) == (' {"a" : [1.50, "é"]}', {"a": [1.5, "é"]})


def test_nesting_deeper_than_100_levels_is_rejected() -> None:
    def nested(levels: int) -> dict[str, Any]:
        return {"a": nested(levels - 1)} if levels else {}

    deep = '{"a":' * 99 + "{}" + "}" * 99
    assert ToolCall("1", "f", deep).by_name["a"]
    with pytest.raises(ValueError, match="nested deeper than 100 levels"):
        ToolCall("1", "f", '{"a":' + deep + "}")
    assert Tool("f", None, nested(99))
    with pytest.raises(ValueError, match=r"parameters of function 'f': nested deeper than 100 levels"):
        Tool("f", None, nested(100))


def test_parameters_are_completed_to_the_schema_of_an_object() -> None:
    assert Tool("f", None, {}).schema == {"type": "object", "properties": {}, "additionalProperties": False}
    assert Tool("f", None, {"required": ["a"]}).schema == {
        "type": "object",
        "properties": {},
        "required": ["a"],
    }
    with pytest.raises(ValueError, match=r"parameters of function 'f': type 'array': should be 'object'"):
        Tool("f", None, {"type": "array"})


def test_only_messages_of_the_assistant_have_calls() -> None:
    calls = (ToolCall("1", "f", "{}"),)
    assert Message("assistant", tool_calls=calls).content == ""
    with pytest.raises(ValueError, match="only the assistant calls functions"):
        Message("user", "Hello", calls)


@pytest.mark.parametrize("role", ["<|im_start|>", "", "root", "System"])
def test_unknown_roles_are_rejected(role: str) -> None:
    with pytest.raises(ValueError, match="should be one of system, user, assistant"):
        Message(role, "Hello")
