"""The routes of Anthropic's Messages API."""

from __future__ import annotations

from typing import Any

from app.api.dialect import EVENTS, JSON, Dialect, Operation, Reply, causes
from app.api.messages.errors import ERRORS, MessagesError
from app.api.messages.messages import count_tokens, messages
from app.api.messages.replies import MessageEvent, MessageReply, TokenCount
from app.api.messages.requests import CountRequest, MessagesRequest

_ERRORS = causes(408, 413, 415, 429, 500, 503, 504) | {
    400: "The request is invalid. The message names the field and the allowed values.",
    404: "The context or the model does not exist.",
}
_QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "Where is located Paris ?"}]
_TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "London", "Rome"]}},
        "required": ["city"],
    },
}
_CALL: dict[str, Any] = {"type": "tool_use", "id": "c", "name": "get_weather", "input": {"city": "Rome"}}
_RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "c", "content": "Sunny."}

_MESSAGES = Operation(
    method="POST",
    path="/v1/messages",
    endpoint=messages,
    summary="Answer a conversation",
    description=(
        "Thoughts are off unless `thinking` turns them on. `thinking.budget_tokens` ends a thought. If the "
        "last message is the assistant's, the answer continues it. Unknown fields and tools are ignored."
    ),
    body=MessagesRequest,
    examples={
        "A question": {"model": "any", "messages": _QUESTION, "max_tokens": 40},
        "Streamed": {
            "system": [{"type": "text", "text": "Answer in one sentence."}],
            "messages": _QUESTION,
            "max_tokens": 20,
            "stream": True,
        },
        "A required call": {
            "messages": _QUESTION,
            "tools": [_TOOL],
            "tool_choice": {"type": "any"},
            "max_tokens": 80,
        },
        "A result of a call": {
            "messages": [
                *_QUESTION,
                {"role": "assistant", "content": [_CALL]},
                {"role": "user", "content": [_RESULT]},
            ],
            "tools": [_TOOL],
            "max_tokens": 30,
        },
    },
    replies={200: Reply("The answer.", {JSON: MessageReply, EVENTS: MessageEvent | MessagesError})},
    errors=_ERRORS,
)
_COUNT = Operation(
    method="POST",
    path="/v1/messages/count_tokens",
    endpoint=count_tokens,
    summary="Count the tokens of a prompt",
    body=CountRequest,
    examples={"A question": {"model": "any", "messages": _QUESTION}},
    replies={200: Reply("The number of tokens.", {JSON: TokenCount})},
    errors=_ERRORS,
)

DIALECT = Dialect(
    name="Anthropic Messages",
    description="Anthropic's Messages API.",
    error=ERRORS,
    operations=(_MESSAGES, _COUNT),
)
