"""Tools with a model whose chat template does not support them."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 9999}, "b": {"type": "integer", "maximum": 9999}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {"get_weather": WEATHER, "add": ADD}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": f"{name}.", "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
MESSAGES: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]


def check(calls: Any) -> None:
    for call in calls:
        assert call.type == "function"
        assert call.id.startswith("call_")
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_required_call_matches_its_schema(temperature: float, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        tools=TOOLS,
        tool_choice="required",
        temperature=temperature,
        seed=1,
        max_tokens=200,
        parallel_tool_calls=False,
    )
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    assert len(choice.message.tool_calls) == 1
    check(choice.message.tool_calls)


def test_the_named_tool_is_called(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "add"}},
        max_tokens=200,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert [call.function.name for call in calls if call.type == "function"] == ["add"]
    check(calls)


@pytest.mark.parametrize("name", ["auto", "required"])
def test_a_tool_can_have_the_name_of_a_choice(name: str, client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": name, "parameters": ADD}}
    answer = client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        tools=[*TOOLS, tool],
        tool_choice={"type": "function", "function": {"name": name}},
        max_tokens=200,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert [call.function.name for call in calls if call.type == "function"] == [name]


def test_a_streamed_call_matches_its_schema(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
        temperature=0,
        stream=True,
    )
    name, arguments, ids, reasons, content = "", "", [], [], ""
    for chunk in stream:
        [choice] = chunk.choices
        content += choice.delta.content or ""
        reasons += [choice.finish_reason] if choice.finish_reason else []
        for call in choice.delta.tool_calls or []:
            assert call.index == 0
            assert call.function
            ids += [call.id] if call.id else []
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert content == ""
    assert len(ids) == 1
    assert reasons == ["tool_calls"]
    jsonschema.validate(json.loads(arguments), SCHEMAS[name])


def test_auto_returns_text_or_calls(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "Say hello."}], tools=TOOLS, max_tokens=20
    )
    [choice] = answer.choices
    assert choice.message.content or choice.message.tool_calls
    check(choice.message.tool_calls or [])


def test_choice_none_leaves_the_tools_out_of_the_prompt(client: openai.OpenAI) -> None:
    def n_prompt(**more: Any) -> int:
        answer = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=1, **more)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    assert n_prompt(tools=TOOLS, tool_choice="none") == n_prompt() < n_prompt(tools=TOOLS)


def test_a_tool_result_extends_the_conversation(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
    )
    message = first.choices[0].message
    assert message.tool_calls
    result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"degrees": 21}'}
    history: list[Any] = [*MESSAGES, message, result]
    second = client.chat.completions.create(model="m", messages=history, tools=TOOLS, max_tokens=20)
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens + 10
    without = client.chat.completions.create(model="m", messages=history, max_tokens=20)
    assert without.choices[0].message.content


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (
            [
                *MESSAGES,
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{"}}
                    ],
                },
            ],
            "messages.1.tool_calls.0.function.arguments",
        ),
        ([*MESSAGES, {"role": "tool", "content": "x"}], "messages.1"),
        (
            [{"role": "user", "content": "x", "tool_calls": []}, {"role": "wizard", "content": ""}],
            "messages.1.role",
        ),
    ],
)
def test_invalid_messages_are_rejected_by_field(messages: Any, param: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="m", messages=messages, tools=TOOLS)
    assert error.value.param == param


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ({"name": "bad name"}, "tools.0.function.name"),
        ({"name": "f", "parameters": {"type": "object", "not": {}}}, "not"),
        ({"name": "f", "parameters": {"type": "strange"}}, "strange"),
    ],
)
def test_tools_that_cannot_be_enforced_are_rejected(tool: Any, message: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=message.replace(".", r"\.")) as error:
        client.post(
            "/chat/completions",
            body={
                "messages": MESSAGES,
                "tools": [{"type": "function", "function": tool}],
                "tool_choice": "required",
            },
            cast_to=object,
        )
    assert (error.value.param or "").startswith("tools.0.function")


# One keyword of each kind that grammars do not support.
TAGS = {
    "type": "object",
    "properties": {
        "tags": {
            "type": "array",
            "items": {"type": "string", "maxLength": 5},
            "uniqueItems": True,
            "maxItems": 2,
        },
        "mail": {"type": "string", "pattern": "^(?!x)[a-z]{1,5}@[a-z]{1,5}$"},
        "phone": {"type": "string", "format": "phone", "maxLength": 5},
    },
    "required": ["tags", "mail", "phone"],
    "additionalProperties": False,
    "propertyNames": {"not": {"pattern": "^_"}},
    "dependentRequired": {"tags": ["mail"]},
}


def test_a_tool_with_unsupported_keywords_is_called_unless_it_is_strict(client: openai.OpenAI) -> None:
    def call(**options: Any) -> Any:
        function = {"name": "tag", "parameters": TAGS, **options}
        return client.chat.completions.create(
            model="m",
            messages=MESSAGES,
            tools=[TOOLS[0], {"type": "function", "function": function}],  # type: ignore[list-item]
            tool_choice={"type": "function", "function": {"name": "tag"}},
            temperature=0,
            max_tokens=200,
        )

    for options in ({}, {"strict": False}):
        [called] = call(**options).choices[0].message.tool_calls
        arguments = json.loads(called.function.arguments)
        assert arguments.keys() == {"tags", "mail", "phone"}
        assert "@" in arguments["mail"]
    with pytest.raises(
        openai.BadRequestError, match=r"tool 'tag'.*uniqueItems at #/properties/tags"
    ) as error:
        call(strict=True)
    assert error.value.param == "tools.1.function.parameters"


def test_functions_are_tools(client: openai.OpenAI) -> None:
    functions = [tool["function"] for tool in TOOLS]
    history = [
        *MESSAGES,
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "add", "arguments": '{"a": 1, "b": 2}'},
        },
        {"role": "function", "name": "add", "content": "3"},
    ]
    answer: Any = client.post(
        "/chat/completions",
        body={
            "messages": history,
            "functions": functions,
            "function_call": {"name": "get_weather"},
            "max_tokens": 100,
        },
        cast_to=object,
    )
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    jsonschema.validate(json.loads(call["function"]["arguments"]), WEATHER)


def test_only_allowed_tools_are_called(client: openai.OpenAI) -> None:
    allowed: Any = {"mode": "required", "tools": [{"type": "function", "function": {"name": "add"}}]}
    answer = client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        tools=TOOLS,
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
        max_tokens=100,
    )
    calls: Any = answer.choices[0].message.tool_calls
    assert {call.function.name for call in calls} == {"add"}
