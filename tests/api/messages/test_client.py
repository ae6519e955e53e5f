"""Anthropic's client and the Messages API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from app.api.messages.conversation import prompt_of
from app.api.messages.requests import MessagesRequest
from tests.conftest import KEY, Server

pytestmark = pytest.mark.slow

QUESTION: list[Any] = [{"role": "user", "content": "Where is located Paris ?"}]
TEXT: Any = {"type": "text", "text": "It leaves at six."}
PDF: Any = {"type": "base64", "media_type": "application/pdf", "data": "QQ=="}
IMAGE: Any = {"type": "base64", "media_type": "image/png", "data": "QQ=="}
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {"name": "get_weather", "description": "The weather.", "input_schema": CITY}


def connect(url: str, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, max_retries=0, timeout=90, **({"api_key": "none"} | options))


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[anthropic.Anthropic]:
    with connect(server_url) as client:
        yield client


@pytest.fixture(scope="module")
def thinker(thinking_url: str) -> Iterator[anthropic.Anthropic]:
    with connect(thinking_url) as client:
        yield client


def fields(**more: Any) -> Any:
    return {"model": "m", "messages": QUESTION, "max_tokens": 24} | more


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (
            {
                "type": "document",
                "title": "Ferry",
                "context": "A notice.",
                "source": {"type": "text", "media_type": "text/plain", "data": "It leaves at six."},
                "citations": {"enabled": True},
            },
            "Ferry\nA notice.\n\nIt leaves at six.",
        ),
        (
            {"type": "document", "source": {"type": "base64", "media_type": "text/plain", "data": "w6k="}},
            "é",
        ),
        (
            {"type": "document", "source": {"type": "content", "content": [TEXT]}},
            TEXT["text"],
        ),
        (
            {
                "type": "search_result",
                "source": "example.org",
                "title": "Ferry",
                "content": [{"type": "text", "text": "It leaves"}, {"type": "text", "text": "at six."}],
            },
            "Ferry\nexample.org\n\nIt leaves\nat six.",
        ),
    ],
)
def test_documents_and_search_results_are_text(block: Any, text: str, client: anthropic.Anthropic) -> None:
    def n_tokens(*blocks: Any) -> int:
        messages: Any = [{"role": "user", "content": [*blocks, {"type": "text", "text": "When?"}]}]
        return client.messages.count_tokens(model="m", messages=messages).input_tokens

    assert n_tokens(block) == n_tokens({"type": "text", "text": text}) > n_tokens()
    body = {"messages": [{"role": "user", "content": [block]}], "max_tokens": 1}
    [turn] = prompt_of(MessagesRequest.model_validate(body)).messages
    assert turn.content == text


def test_a_stream_has_the_text_of_a_whole_message(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**fields())
    [block] = whole.content
    assert block.type == "text"
    assert block.text
    with client.messages.stream(**fields()) as stream:
        events = list(stream)
        final = stream.get_final_message()
    assert final.content[0].text == block.text  # type: ignore[union-attr]
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    types = [event.type for event in events if event.type != "text"]
    assert types[:2] == ["message_start", "content_block_start"]
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    cached = client.messages.create(**fields()).usage
    assert cached.cache_read_input_tokens
    n_prompt = cached.input_tokens + cached.cache_read_input_tokens
    assert client.messages.count_tokens(model="m", messages=QUESTION).input_tokens == n_prompt


def test_the_stop_reason_tells_the_end(client: anthropic.Anthropic) -> None:
    text = client.messages.create(**fields()).content[0].text  # type: ignore[union-attr]
    stop = text.split()[3]
    stopped = client.messages.create(**fields(stop_sequences=[stop]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)
    assert stop not in stopped.content[0].text  # type: ignore[union-attr]
    cut = client.messages.create(**fields(max_tokens=2))
    assert (cut.stop_reason, cut.stop_sequence) == ("max_tokens", None)


def test_a_call_and_its_result(client: anthropic.Anthropic) -> None:
    tools: Any = [TOOL, {"type": "web_search_20250305", "name": "web_search"}]
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    whole = client.messages.create(**fields(tools=tools, tool_choice=choice, max_tokens=80))
    [call] = whole.content
    assert call.type == "tool_use"
    assert whole.stop_reason == "tool_use"
    assert call.input["city"] in ("Paris", "Rome")
    with client.messages.stream(**fields(tools=tools, tool_choice=choice, max_tokens=80)) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[0].input == call.input  # type: ignore[union-attr]
    result: Any = {
        "type": "tool_result",
        "tool_use_id": call.id,
        "content": [{"type": "text", "text": "Sunny."}, {"type": "image", "source": IMAGE}],
        "cache_control": {"type": "ephemeral"},
    }
    history = [*QUESTION, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    later = client.messages.create(**fields(messages=history, tools=tools))
    assert later.usage.output_tokens > 0
    with pytest.raises(anthropic.BadRequestError, match="type 'image': should be one of text"):
        client.messages.create(**fields(messages=[{"role": "user", "content": [result["content"][1]]}]))


def test_a_cut_call_has_the_input_of_a_stream(client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris"]}, "letter": {"type": "string", "minLength": 400}},
        "required": ["city", "letter"],
        "additionalProperties": False,
    }
    asked = fields(tools=[TOOL | {"input_schema": schema}], tool_choice={"type": "any"}, max_tokens=60)
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    assert whole.stop_reason == streamed.stop_reason == "max_tokens"
    assert whole.content[-1].input == streamed.content[-1].input == {"city": "Paris"}  # type: ignore[union-attr]


def test_structured_output(client: anthropic.Anthropic) -> None:
    form = {"format": {"type": "json_schema", "schema": CITY}}
    message = client.messages.create(**fields(output_config=form, max_tokens=60))
    assert json.loads(message.content[0].text)["city"] in ("Paris", "Rome")  # type: ignore[union-attr]


def test_thoughts_are_blocks_on_request(thinker: anthropic.Anthropic) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 8}
    whole = thinker.messages.create(**fields(thinking=thinking, max_tokens=40))
    thought, text = whole.content
    assert thought.type == "thinking"
    assert text.type == "text"
    assert "think>" not in thought.thinking + text.text
    with thinker.messages.stream(**fields(thinking=thinking, max_tokens=40)) as stream:
        streamed = stream.get_final_message()
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    plain = thinker.messages.create(**fields(max_tokens=8))
    assert [block.type for block in plain.content] == ["text"]
    history = [*QUESTION, {"role": "assistant", "content": whole.content}, *QUESTION]
    assert thinker.messages.create(**fields(messages=history, max_tokens=1)).usage.output_tokens == 1


def test_a_billing_line_does_not_reach_the_prompt(client: anthropic.Anthropic) -> None:
    def n_tokens(system: Any) -> int:
        return client.messages.count_tokens(model="m", messages=QUESTION, system=system).input_tokens

    line, text = "x-anthropic-billing-header: cc_version=1; cch=a1b2c;", "Answer in one word."
    expected = n_tokens(text)
    assert n_tokens(f"{line}\n{text}") == expected
    blocks = [{"type": "text", "text": line}, {"type": "text", "text": text}]
    assert n_tokens(blocks) == expected
    assert n_tokens(f"{text}\n{line}") > expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": PDF}]}]},
            "messages.0.content.0: source: base64 of application/pdf is not supported",
        ),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tool_choice": {"type": "tool", "name": "f"}, "tools": [TOOL]}, "tool_choice.name"),
        ({"tools": [TOOL, TOOL]}, "tools: the name"),
        ({"extra_body": {"context": "unknown"}}, "context"),
    ],
)
def test_errors_have_anthropics_form(wrong: Any, message: str, client: anthropic.Anthropic) -> None:
    kind = anthropic.NotFoundError if "extra_body" in wrong else anthropic.BadRequestError
    with pytest.raises(kind, match=message.replace(".", r"\.")) as error:
        client.messages.create(**fields(**wrong))
    body: Any = error.value.body
    assert body["type"] == "error"
    assert body["request_id"] == error.value.response.headers["x-request-id"]


def test_a_client_may_end_a_stream(client: anthropic.Anthropic, server_url: str) -> None:
    with client.messages.stream(**fields(max_tokens=2000, extra_body={"ignore_eos": True})) as stream:
        next(stream.text_stream)
    assert client.messages.create(**fields(max_tokens=1)).usage.output_tokens == 1
    assert httpx.get(f"{server_url}/health").status_code == 200


def test_the_key_may_be_in_either_header(locked_server: Server) -> None:
    for options in ({"api_key": KEY}, {"api_key": None, "auth_token": KEY}):
        with connect(locked_server.url, **options) as client:
            assert client.messages.create(**fields(max_tokens=1)).usage.output_tokens == 1
    with connect(locked_server.url) as client, pytest.raises(anthropic.AuthenticationError):
        client.messages.create(**fields())
