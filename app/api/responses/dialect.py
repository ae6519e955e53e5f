"""The routes of OpenAI's Responses API."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app.api.dialect import EVENTS, JSON, Dialect, Operation, Reply, causes
from app.api.openai.errors import ERRORS
from app.api.responses.replies import Deleted, InputItems, InputTokens, ResponseEvent, ResponseObject
from app.api.responses.requests import ResponsesRequest
from app.api.responses.responses import input_tokens, responses
from app.api.responses.stored import delete, input_items, retrieve

_ERRORS = causes(408, 413, 415, 429, 500, 503, 504) | {
    400: "The request is invalid. `param` is the field, `message` has the allowed values."
}
_CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "London", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
_TOOL: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": _CITY,
}
_EXAMPLES: dict[str, Any] = {
    "A question": {"model": "any", "input": "Where is located Paris ?", "max_output_tokens": 40},
    "Streamed": {
        "instructions": "Answer in one sentence.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Where is Paris?"}]}],
        "max_output_tokens": 20,
        "stream": True,
    },
    "JSON by a schema": {
        "input": "Name a capital.",
        "text": {"format": {"type": "json_schema", "name": "city", "schema": _CITY}},
        "max_output_tokens": 40,
    },
    "A result of a call": {
        "input": [
            {"role": "user", "content": "What is the weather in Paris?"},
            {
                "type": "function_call",
                "call_id": "c1",
                "name": "get_weather",
                "arguments": '{"city": "Paris"}',
            },
            {"type": "function_call_output", "call_id": "c1", "output": "Sunny, 21 degrees."},
        ],
        "tools": [_TOOL],
        "max_output_tokens": 30,
    },
}

_RESPONSES = Operation(
    method="POST",
    path="/v1/responses",
    endpoint=responses,
    summary="Create a response",
    description=(
        "`previous_response_id` continues a response of the last hour, unless it had `store: false`. "
        "With `stream`, events have OpenAI's names and order. Unknown fields, tools and items are ignored."
    ),
    body=ResponsesRequest,
    examples=_EXAMPLES,
    replies={200: Reply("The response.", {JSON: ResponseObject, EVENTS: ResponseEvent})},
    errors=_ERRORS | causes(404),
)
_INPUT_TOKENS = Operation(
    method="POST",
    path="/v1/responses/input_tokens",
    endpoint=input_tokens,
    summary="Count the tokens of a prompt",
    body=ResponsesRequest,
    examples={"A question": _EXAMPLES["A question"]},
    replies={200: Reply("The number of tokens.", {JSON: InputTokens})},
    errors=_ERRORS | causes(404),
)
_STORED_ERRORS = causes(500, 503) | {404: "The response is not stored."}
_ID = {"response_id": "Id of a response of the last hour, unless it had `store: false`."}
_RETRIEVE = Operation(
    method="GET",
    path="/v1/responses/{response_id}",
    endpoint=retrieve,
    summary="Get a stored response",
    replies={200: Reply("The response.", {JSON: ResponseObject})},
    errors=_STORED_ERRORS | {400: "The request has `stream=true`: events are not stored."},
    parameters=_ID,
)
_DELETE = Operation(
    method="DELETE",
    path="/v1/responses/{response_id}",
    endpoint=delete,
    summary="Delete a stored response",
    replies={200: Reply("It is deleted.", {JSON: Deleted})},
    errors=_STORED_ERRORS,
    parameters=_ID,
)
_INPUT_ITEMS = Operation(
    method="GET",
    path="/v1/responses/{response_id}/input_items",
    endpoint=input_items,
    summary="List the items before a stored response",
    description=(
        "The items of this response and of those that it continues. Parameters of the query are `limit` "
        "(1 to 100, default 20), `order` (`desc` or `asc`) and `after`, the id of an item."
    ),
    replies={200: Reply("The items.", {JSON: InputItems})},
    errors=_STORED_ERRORS | {400: "A parameter is invalid. The message has the allowed values."},
    parameters=_ID,
)
_OPERATIONS = (_RESPONSES, _INPUT_TOKENS, _RETRIEVE, _DELETE, _INPUT_ITEMS)

DIALECT = Dialect(
    name="OpenAI Responses",
    description="OpenAI's Responses API.",
    error=ERRORS,
    operations=(
        *_OPERATIONS,
        *(replace(one, path=one.path.removeprefix("/v1")) for one in _OPERATIONS),
    ),
)
