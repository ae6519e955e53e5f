"""Tools, calls and results that a template does not support are written into contents."""

from __future__ import annotations

from app.chat.messages import Message, Tool, ToolCall
from app.chat.template.turns import ToolSupport, as_schema, as_turns, in_words

TOOL = Tool("add", "Adds numbers", {"properties": {"a": {"type": "number"}}})
CALLS = (ToolCall("id 1", "add", '{"a": 1}'), ToolCall("id 2", "add", '{"a": 2}'))
USER = Message("user", "How much?")
ALL = ToolSupport(lists=True, calls=True, results=True)


def test_without_support_tools_calls_and_results_are_text() -> None:
    messages = [
        Message("system", "Be brief."),
        USER,
        Message("assistant", "Let me add.", CALLS),
        Message("tool", "1", tool_call_id="id 1"),
        Message("tool", "2", tool_call_id="id 2"),
        Message("assistant", "3"),
        USER,
    ]
    system, *others = in_words(messages, [TOOL, TOOL], ToolSupport())
    assert system.role == "system"
    line = (
        '{"type": "function", "function": {"name": "add", "description": "Adds numbers", '
        '"parameters": {"type": "object", "properties": {"a": {"type": "number"}}}}}'
    )
    assert system.content == (
        "Be brief.\n\nYou can call these functions, of which each line describes one as JSON:\n"
        f"<tools>\n{line}\n{line}\n</tools>\n\n"
        "To call one, answer with its name and with a JSON object of arguments that fits its parameters, "
        'in this form:\n<tool_call>\n{"name": "<name>", "arguments": <arguments>}\n</tool_call>'
    )
    assert others == [
        USER,
        Message(
            "assistant",
            'Let me add.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
            '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>',
        ),
        Message("user", "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"),
        Message("assistant", "3"),
        USER,
    ]


def test_without_a_system_message_the_list_of_tools_is_one() -> None:
    system, user = in_words([USER], [TOOL], ToolSupport())
    assert system.role == "system"
    assert system.content.startswith("You can call these functions")
    assert user == USER
    assert in_words([USER], [], ToolSupport()) == [USER]


def test_results_and_the_next_question_are_one_turn() -> None:
    messages = [Message("tool", "1"), USER, USER]
    assert in_words(messages, [], ToolSupport()) == [
        Message("user", "<tool_response>\n1\n</tool_response>\nHow much?\nHow much?")
    ]


def test_supported_parts_are_unchanged() -> None:
    messages = [USER, Message("assistant", "", CALLS[:1]), Message("tool", "1")]
    assert in_words(messages, [TOOL], ALL) == messages
    system, *rest = in_words(messages, [TOOL], ToolSupport(calls=True, results=True))
    assert (system.role, rest) == ("system", messages)
    assert in_words(messages, [TOOL], ToolSupport(lists=True, results=True)) == [
        USER,
        Message("assistant", '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'),
        messages[2],
    ]
    assert in_words(messages, [TOOL], ToolSupport(lists=True, calls=True)) == [
        *messages[:2],
        Message("user", "<tool_response>\n1\n</tool_response>"),
    ]


def test_turns_have_the_format_of_transformers() -> None:
    messages = [Message("assistant", "Well", CALLS[:1]), Message("tool", "1", tool_call_id="id 1"), USER]
    function = {"name": "add", "arguments": {"a": 1}}
    assert as_turns(messages, ALL) == [
        {
            "role": "assistant",
            "content": "Well",
            "tool_calls": [{"type": "function", "id": "id 1", "function": function}],
        },
        {"role": "tool", "content": "1", "tool_call_id": "id 1", "name": "add"},
        {"role": "user", "content": "How much?"},
    ]
    (turn, *_) = as_turns(messages, ToolSupport(calls=True, text_arguments=True))
    assert turn["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'


def test_shortened_ids_of_calls_and_results_are_equal() -> None:
    support = ToolSupport(calls=True, results=True, short_ids=True)
    messages = [
        Message("assistant", "", CALLS),
        Message("tool", "2", tool_call_id="id 2"),
        Message("tool", "1", tool_call_id="id 1"),
        Message("tool", "0", tool_call_id="Abc012345"),
    ]
    assistant, *results = as_turns(messages, support)
    first, second = (call["id"] for call in assistant["tool_calls"])
    assert first != second
    assert all(len(id_) == 9 and id_.isalnum() for id_ in (first, second))
    assert [result["tool_call_id"] for result in results] == [second, first, "Abc012345"]


def test_lone_surrogates_are_replaced_everywhere() -> None:
    call = ToolCall("\ud800", "add", '{"\\ud800": ["\\udfff", 1]}')
    messages = [Message("assistant", "\ud800", (call,)), Message("tool", "\ud800", tool_call_id="\ud800")]
    turns = as_turns(messages, ALL)
    assert turns[0]["content"] == turns[0]["tool_calls"][0]["id"] == turns[1]["tool_call_id"] == "?"
    assert turns[0]["tool_calls"][0]["function"]["arguments"] == {"?": ["?", 1]}
    schema = as_schema(Tool("add", "\ud800", {"properties": {"\ud800": {"description": "\udfff"}}}))
    assert schema["function"]["description"] == "?"
    assert schema["function"]["parameters"]["properties"] == {"?": {"description": "?"}}
