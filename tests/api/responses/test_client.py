"""OpenAI's client and the Responses API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

QUESTION = "Where is located Paris ?"
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "name": "get_weather", "parameters": CITY, "strict": True}


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0, timeout=90) as client:
        yield client


@pytest.fixture(scope="module")
def thinker(thinking_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{thinking_url}/v1", api_key="none", max_retries=0, timeout=90) as client:
        yield client


def ask(client: openai.OpenAI, input_: Any = QUESTION, **fields: Any) -> Any:
    defaults: dict[str, Any] = {"model": "m", "input": input_, "temperature": 0, "max_output_tokens": 24}
    return client.responses.create(**(defaults | fields))


def test_a_stream_has_the_events_of_a_whole_response(client: openai.OpenAI) -> None:
    whole = ask(client)
    assert whole.output_text
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    with client.responses.stream(model="m", input=QUESTION, temperature=0, max_output_tokens=24) as stream:
        events: list[Any] = list(stream)
    final = events[-1].response
    assert [event.sequence_number for event in events] == list(range(len(events)))
    names = [event.type.removeprefix("response.") for event in events]
    assert names[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert names[-4:-1] == ["output_text.done", "content_part.done", "output_item.done"]
    assert names[-1] == final.status == whole.status
    assert set(names[4:-4]) == {"output_text.delta"}
    assert final.output_text == whole.output_text
    ids = {event.item_id for event in events if hasattr(event, "item_id")}
    assert ids == {final.output[0].id}
    assert {event.response.id for event in events if hasattr(event, "response")} == {final.id}


def test_a_cut_response_is_incomplete(client: openai.OpenAI) -> None:
    response = ask(client, max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"


def test_a_call_and_its_result(client: openai.OpenAI) -> None:
    fields: Any = {"tools": [TOOL, {"type": "web_search"}], "max_output_tokens": 80}
    first = ask(client, tool_choice="required", parallel_tool_calls=False, **fields)
    [call] = first.output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    question = {"role": "user", "content": QUESTION}
    by_items = ask(client, [question, call.model_dump(), result], **fields)
    by_id = ask(client, [result], previous_response_id=first.id, **fields)
    assert by_id.output_text == by_items.output_text
    assert by_id.usage.input_tokens == by_items.usage.input_tokens > first.usage.input_tokens
    choice = {"type": "function", "name": "get_weather"}
    events = list(ask(client, stream=True, tool_choice=choice, **fields))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == events[-1].response.output[0].arguments
    assert json.loads("".join(deltas))["city"] in ("Paris", "Rome")


def test_structured_output(client: openai.OpenAI) -> None:
    class City(BaseModel):
        capital: bool

    response = client.responses.parse(model="m", input=QUESTION, text_format=City, max_output_tokens=60)
    assert response.output_parsed is not None


def test_thoughts_are_items(thinker: openai.OpenAI) -> None:
    fields: Any = {"extra_body": {"thinking_budget": 8}, "max_output_tokens": 40}
    whole = ask(thinker, **fields)
    thought, message = whole.output
    assert (thought.type, message.type) == ("reasoning", "message")
    assert "think>" not in thought.content[0].text + whole.output_text
    assert whole.usage.output_tokens_details.reasoning_tokens >= 8
    events = list(ask(thinker, stream=True, **fields))
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == thought.content[0].text
    assert events[-1].response.output_text == whole.output_text
    off = ask(thinker, reasoning={"effort": "none"}, max_output_tokens=8)
    assert [item.type for item in off.output] == ["message"]
    question = {"role": "user", "content": QUESTION}
    again = ask(thinker, [question, *whole.output, {"role": "user", "content": "Why?"}])
    assert again.usage.input_tokens > whole.usage.input_tokens


def test_instructions_are_the_system_message_of_one_response(client: openai.OpenAI) -> None:
    system = "Answer in one word."
    first = ask(client, instructions=system)
    as_item = ask(client, [{"role": "developer", "content": system}, {"role": "user", "content": QUESTION}])
    assert first.usage.input_tokens == as_item.usage.input_tokens
    counted = client.responses.input_tokens.count(model="m", input=QUESTION, instructions=system)
    assert counted.input_tokens == first.usage.input_tokens
    later = ask(client, "Why?", previous_response_id=first.id)
    with_system = ask(client, "Why?", previous_response_id=first.id, instructions=system)
    assert later.usage.input_tokens != with_system.usage.input_tokens


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_0"}, "previous_response_id"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input.0.content.0",
        ),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}]}, "input.0"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"input": [{"type": "web_search_call", "id": "w"}]}, "input"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {}}] * 2}, "tools"),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "name": "f",
                        "parameters": {"type": "object", "not": {"contains": True}},
                        "strict": True,
                    }
                ]
            },
            "tools.0.function.parameters",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ],
)
def test_errors_name_the_field(fields: dict[str, Any], param: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, **fields)
    assert error.value.param == param


def test_a_response_that_is_not_stored_cannot_be_continued(client: openai.OpenAI) -> None:
    first = ask(client, store=False)
    with pytest.raises(openai.BadRequestError, match="kept for an hour"):
        ask(client, "Why?", previous_response_id=first.id)


def test_a_stored_response_is_retrieved_and_deleted(client: openai.OpenAI) -> None:
    first = ask(client, instructions="Be brief.", metadata={"a": "b"}, max_output_tokens=3)
    final = list(ask(client, "Why?", previous_response_id=first.id, stream=True, max_output_tokens=2))[-1]
    assert client.responses.retrieve(first.id) == first
    assert client.responses.retrieve(final.response.id) == final.response
    items: list[Any] = client.responses.input_items.list(final.response.id, order="asc").data
    assert [item.role for item in items] == ["user", "assistant", "user"]
    assert [item.content[0].text for item in items] == [QUESTION, first.output_text, "Why?"]
    pages = client.responses.input_items.list(final.response.id, limit=1)  # newest first, a page each
    assert [item.id for item in pages] == [item.id for item in reversed(items)]
    with pytest.raises(openai.BadRequestError, match="limit: should be less than or equal to 100, not"):
        client.responses.input_items.list(first.id, limit=101)
    with pytest.raises(openai.BadRequestError, match="stream: should be false"):
        client.responses.retrieve(first.id, stream=True)
    client.responses.delete(first.id)
    for use in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError, match="is not stored"):
            use(first.id)
    with pytest.raises(openai.BadRequestError, match="is not stored"):
        ask(client, "Why?", previous_response_id=first.id)


def test_a_client_may_end_a_stream(client: openai.OpenAI, server_url: str) -> None:
    stream = ask(client, stream=True, max_output_tokens=2000, extra_body={"ignore_eos": True})
    for event in stream:
        if event.type == "response.output_text.delta":
            break
    stream.close()
    assert ask(client, max_output_tokens=1).usage.output_tokens == 1
    assert httpx.get(f"{server_url}/health").status_code == 200
