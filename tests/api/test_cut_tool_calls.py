"""A stop string within the arguments of a tool call."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "The weather.", "parameters": CITY}
MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
STOP = '"city'  # every call has it


def post(url: str, path: str, **body: Any) -> httpx.Response:
    response = httpx.post(f"{url}{path}", json={"model": "m"} | body, timeout=90)
    assert response.status_code == 200, response.text
    return response


def events(response: httpx.Response) -> list[Any]:
    lines = response.text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


CHAT = {
    "messages": MESSAGES,
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": "required",
    "stop": STOP,
}
MESSAGE = {
    "messages": MESSAGES,
    "max_tokens": 100,
    "tools": [{"name": "get_weather", "input_schema": CITY}],
    "tool_choice": {"type": "any"},
    "stop_sequences": [STOP],
}


def test_chat(server_url: str) -> None:
    [choice] = post(server_url, "/v1/chat/completions", **CHAT).json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"].strip() == "{"


def test_chat_stream(server_url: str) -> None:
    chunks = events(post(server_url, "/v1/chat/completions", **CHAT, stream=True))
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_messages(server_url: str) -> None:
    answer = post(server_url, "/v1/messages", **MESSAGE).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", STOP)
    assert answer["content"][-1]["input"] == {}


def test_messages_stream(server_url: str) -> None:
    *_, delta, _stop = events(post(server_url, "/v1/messages", **MESSAGE, stream=True))
    assert delta["delta"]["stop_reason"] == "stop_sequence"


@pytest.mark.parametrize("stream", [False, True])
def test_responses(stream: bool, server_url: str) -> None:
    body = {
        "input": "What is the weather in Paris?",
        "tools": [{"type": "function", **FUNCTION}],
        "tool_choice": "required",
        "stop": STOP,
        "stream": stream,
    }
    response = post(server_url, "/v1/responses", **body)
    answer = events(response)[-1]["response"] if stream else response.json()
    assert answer["status"] == "completed"
    assert answer["output"][-1]["status"] == "incomplete"
