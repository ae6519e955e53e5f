"""The routes of the OpenAI dialect, described."""

from __future__ import annotations

from typing import Any

from app.api.openai.embedding_schemas import EmbeddingList, EmbeddingsRequest
from app.api.openai.replies import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    Model,
    ModelList,
    OpenAIErrorResponse,
)
from app.api.openai.requests import ChatRequest, CompletionRequest
from app.api.openapi import EVENTS, JSON, Answer, Operation, Operations, causes

TAG = "OpenAI"

_MISTAKES = (
    "The request cannot be answered as it is: `param` names the field, `message` says what is allowed."
)
_ERRORS = causes(413, 415, 429, 500, 503) | {400: _MISTAKES}

_STREAM = (
    "\n\nWith `stream`, each event's `data` is a chunk, and the last event is `[DONE]`. An answer that "
    "cannot be completed ends with an event of the name `error` instead."
)

_QUESTION = [{"role": "user", "content": "Where is located Paris ?"}]
_CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "capital": {"type": "boolean"}},
    "required": ["city", "capital"],
    "additionalProperties": False,
}
_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "London", "Rome"]}},
            "required": ["city"],
        },
    },
}

CHAT_EXAMPLES: dict[str, Any] = {
    "A question": {"model": "any", "messages": _QUESTION, "max_tokens": 60},
    "A conversation, streamed": {
        "messages": [
            {"role": "system", "content": "Answer in one sentence."},
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "Paris."},
            {"role": "user", "content": "And of Italy?"},
        ],
        "max_tokens": 40,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "Two answers with log-probabilities": {
        "messages": [{"role": "user", "content": "Say a colour."}],
        "n": 2,
        "temperature": 0.8,
        "seed": 7,
        "max_tokens": 8,
        "logprobs": True,
        "top_logprobs": 2,
    },
    "JSON by a schema": {
        "messages": [{"role": "user", "content": "Is Paris a capital?"}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": _CITY, "strict": True},
        },
        "max_tokens": 60,
    },
    "A tool that has to be called": {
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [_WEATHER],
        "tool_choice": "required",
        "max_tokens": 80,
    },
    "In a context of the server": {"messages": [{"role": "user", "content": "7 times 8"}], "context": "math"},
}

COMPLETION_EXAMPLES: dict[str, Any] = {
    "A text": {"model": "any", "prompt": "Once upon a time", "max_tokens": 20},
    "Streamed": {"prompt": "The sea is", "max_tokens": 12, "stream": True},
    "Several texts": {"prompt": ["One, two,", "Red, green,"], "max_tokens": 6, "stop": "\n"},
    "A text's own log-probabilities": {
        "prompt": "Paris is in France.",
        "max_tokens": 0,
        "echo": True,
        "logprobs": 1,
    },
}

EMBEDDING_EXAMPLES: dict[str, Any] = {
    "A text": {"model": "any", "input": "The bridge opens at six."},
    "Several texts, compactly": {
        "input": ["When does the bridge open?", "The bridge opens at six."],
        "encoding_format": "base64",
    },
}

_CHAT = Operation(
    tag=TAG,
    summary="Answer a conversation",
    description=(
        "A conversation without a system turn gets the default context; `context` chooses another. A last "
        "message of the assistant's is continued. What is left out is taken from the context and the "
        "settings." + _STREAM
    ),
    body=ChatRequest,
    examples=CHAT_EXAMPLES,
    answers={
        200: Answer("The answer.", {JSON: ChatCompletion, EVENTS: ChatCompletionChunk | OpenAIErrorResponse})
    },
    error=OpenAIErrorResponse,
    errors=_ERRORS,
)

_COMPLETIONS = Operation(
    tag=TAG,
    summary="Complete one or several texts",
    description="No context and no chat template: the model goes on with the text." + _STREAM,
    body=CompletionRequest,
    examples=COMPLETION_EXAMPLES,
    answers={200: Answer("The texts.", {JSON: Completion, EVENTS: CompletionChunk | OpenAIErrorResponse})},
    error=OpenAIErrorResponse,
    errors=_ERRORS,
)

_EMBEDDINGS = Operation(
    tag=TAG,
    summary="Make vectors of texts",
    description=(
        "Texts that mean much the same have vectors with a high cosine. The server needs an embedding model "
        "for that: KNOWLEDGE=on or EMBEDDING_MODEL. A text that is longer than the model reads is refused."
    ),
    body=EmbeddingsRequest,
    examples=EMBEDDING_EXAMPLES,
    answers={200: Answer("The vectors.", {JSON: EmbeddingList})},
    error=OpenAIErrorResponse,
    errors=causes(413, 415, 429, 500, 501, 503) | {400: _MISTAKES},
)

OPERATIONS: Operations = {
    ("POST", "/v1/chat/completions"): _CHAT,
    ("POST", "/v1/completions"): _COMPLETIONS,
    ("POST", "/v1/embeddings"): _EMBEDDINGS,
    ("GET", "/v1/models"): Operation(
        tag=TAG,
        summary="List the models",
        answers={200: Answer("What answers here.", {JSON: ModelList})},
        error=OpenAIErrorResponse,
        errors=causes(500, 503),
    ),
    ("GET", "/v1/models/{name}"): Operation(
        tag=TAG,
        summary="Describe a model",
        parameters={"name": "The model's id, as `/v1/models` lists it."},
        answers={200: Answer("The model.", {JSON: Model})},
        error=OpenAIErrorResponse,
        errors=causes(500, 503) | {404: "There is no model of that name."},
    ),
    ("POST", "/chat/completions"): _CHAT,
    ("POST", "/completions"): _COMPLETIONS,
    ("POST", "/embeddings"): _EMBEDDINGS,
}
