"""The routes of the TGI dialect, described."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app.api.openai.dialect import CHAT_EXAMPLES, COMPLETION_EXAMPLES
from app.api.openai.replies import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    OpenAIErrorResponse,
)
from app.api.openai.requests import ChatRequest, CompletionRequest
from app.api.openapi import EVENTS, JSON, Answer, Operation, Operations, causes
from app.api.tgi.requests import (
    ChatTokenizeResponse,
    CompatGenerateRequest,
    EmbedRequest,
    ErrorResponse,
    GenerateRequest,
    GenerateResponse,
    Info,
    SimpleToken,
    StreamResponse,
    TokenizeRequest,
)

TAG = "Text Generation Inference"

_READING = causes(400, 413, 415, 422, 500, 503)
_GENERATING = _READING | causes(424, 429)

_NO_TEMPLATE = "No context and no chat template: the model goes on with the text. Unknown fields are ignored."
_LAST_EVENT = (
    " The last event has the whole text, and `details` where they were asked for; of an answer that cannot "
    "be completed it is an error."
)

_PLAIN = {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 10}}
_DETAILED = {
    "inputs": "The capital of France is",
    "parameters": {"max_new_tokens": 5, "details": True, "decoder_input_details": True, "top_n_tokens": 2},
}
_DRAWN = {
    "inputs": "Once upon a time",
    "parameters": {
        "max_new_tokens": 20,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "seed": 42,
        "stop": ["\n"],
    },
}
_BEST = {
    "inputs": "My name is",
    "parameters": {"max_new_tokens": 8, "best_of": 2, "do_sample": True, "details": True},
}
_MATCHING = {
    "inputs": "The year of the moon landing:",
    "parameters": {"max_new_tokens": 8, "grammar": {"type": "regex", "value": "19[0-9]{2}"}},
}

_WHOLE_EXAMPLES: dict[str, Any] = {
    "A text": _PLAIN,
    "With all that is known of its tokens": _DETAILED,
    "Drawn": _DRAWN,
    "The better of two": _BEST,
    "What a regular expression matches": _MATCHING,
}
_STREAM_EXAMPLES: dict[str, Any] = {
    "A text": _PLAIN,
    "With details": {"inputs": "The sea is", "parameters": {"max_new_tokens": 8, "details": True}},
    "Drawn": _DRAWN,
}
_COMPAT_EXAMPLES: dict[str, Any] = {**_WHOLE_EXAMPLES, "Streamed": {**_PLAIN, "stream": True}}

_EMBED_EXAMPLES: dict[str, Any] = {
    "A text": {"inputs": "The bridge opens at six.", "normalize": True},
    "Several, cut where they are too long": {
        "inputs": ["When does the bridge open?", "The bridge opens at six."],
        "truncate": True,
        "truncation_direction": "right",
    },
}
_EMBEDDING = _READING | causes(429, 501)

_COMPAT = Operation(
    tag=TAG,
    summary="Go on with a text, whole or streamed; or make vectors of texts",
    description=(
        "As `/generate_stream` with `stream`, else as `/generate`, with the answer in a list. "
        f"{_NO_TEMPLATE}\n\nA body with a list of `inputs`, or with one of the other fields of `/embed`, is "
        "answered as there; and so is one with `inputs` alone that huggingface_hub sends, for its "
        "`feature_extraction`."
    ),
    body=CompatGenerateRequest | EmbedRequest,
    examples={**_COMPAT_EXAMPLES, "Vectors": _EMBED_EXAMPLES["A text"]},
    answers={
        200: Answer(
            "The text, or the vectors.",
            {
                JSON: list[GenerateResponse] | list[list[float]],
                EVENTS: StreamResponse | ErrorResponse,
            },
        ),
    },
    error=ErrorResponse,
    errors=_GENERATING | causes(501),
)
_NAMED = replace(_COMPAT, parameters={"name": "Any name: the model that is there answers."})

OPERATIONS: Operations = {
    ("POST", "/generate"): Operation(
        tag=TAG,
        summary="Go on with a text",
        description=_NO_TEMPLATE,
        body=GenerateRequest,
        examples=_WHOLE_EXAMPLES,
        answers={200: Answer("The text.", {JSON: GenerateResponse})},
        error=ErrorResponse,
        errors=_GENERATING,
    ),
    ("POST", "/generate_stream"): Operation(
        tag=TAG,
        summary="Go on with a text, token by token",
        description=_NO_TEMPLATE + _LAST_EVENT,
        body=GenerateRequest,
        examples=_STREAM_EXAMPLES,
        answers={200: Answer("An event for every token.", {EVENTS: StreamResponse | ErrorResponse})},
        error=ErrorResponse,
        errors=_GENERATING,
    ),
    ("POST", "/embed"): Operation(
        tag=TAG,
        summary="Make vectors of texts",
        description=(
            "As Text Embeddings Inference does. The server needs an embedding model for that: KNOWLEDGE=on "
            "or EMBEDDING_MODEL."
        ),
        body=EmbedRequest,
        examples=_EMBED_EXAMPLES,
        answers={200: Answer("A vector for each text.", {JSON: list[list[float]]})},
        error=ErrorResponse,
        errors=_EMBEDDING,
    ),
    ("POST", "/"): _COMPAT,
    ("POST", "/model/{name}"): _NAMED,
    ("POST", "/model/{name}/"): _NAMED,
    ("POST", "/invocations"): Operation(
        tag=TAG,
        summary="Answer in the dialect of the body",
        description=(
            "SageMaker's one route: a body with `messages` is answered as by `/v1/chat/completions`, one "
            "with `prompt` as by `/v1/completions`, any other as by `POST /`. Errors before the first byte "
            "have TGI's shape."
        ),
        body=ChatRequest | CompletionRequest | CompatGenerateRequest | EmbedRequest,
        examples={
            "A question": CHAT_EXAMPLES["A question"],
            "OpenAI's completion": COMPLETION_EXAMPLES["A text"],
            "TGI's request": _PLAIN,
            "TGI's request, streamed": _COMPAT_EXAMPLES["Streamed"],
        },
        answers={
            200: Answer(
                "The answer.",
                {
                    JSON: ChatCompletion | Completion | list[GenerateResponse] | list[list[float]],
                    EVENTS: ChatCompletionChunk
                    | CompletionChunk
                    | OpenAIErrorResponse
                    | StreamResponse
                    | ErrorResponse,
                },
            )
        },
        error=ErrorResponse,
        errors=_GENERATING | causes(404, 501),
    ),
    ("POST", "/tokenize"): Operation(
        tag=TAG,
        summary="List the tokens of a text",
        body=TokenizeRequest,
        examples={"A text": {"inputs": "Where is located Paris ?"}},
        answers={200: Answer("Its tokens.", {JSON: list[SimpleToken]})},
        error=ErrorResponse,
        errors=_READING,
    ),
    ("POST", "/chat_tokenize"): Operation(
        tag=TAG,
        summary="List the tokens of a conversation",
        description="As the model would read it, with the context and in the words of the chat template.",
        body=ChatRequest,
        examples={"A question": CHAT_EXAMPLES["A question"]},
        answers={200: Answer("Its tokens and its text.", {JSON: ChatTokenizeResponse})},
        error=ErrorResponse,
        errors=_READING | causes(404),
    ),
    ("GET", "/info"): Operation(
        tag=TAG,
        summary="Describe the model and the limits of a request",
        answers={200: Answer("What answers here.", {JSON: Info})},
        error=ErrorResponse,
        errors=causes(500, 503),
    ),
}
