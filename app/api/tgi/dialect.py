"""The routes of Hugging Face's Text Generation Inference (TGI) and Text Embeddings Inference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app.api.dialect import EVENTS, JSON, Dialect, Operation, Reply, causes
from app.api.openai.dialect import CHAT_EXAMPLES
from app.api.openai.requests import ChatRequest
from app.api.tgi.embed import EmbedRequest, embed, embed_or_generate
from app.api.tgi.errors import ERRORS, ErrorResponse
from app.api.tgi.generate import generate, generate_stream
from app.api.tgi.info import Info, info
from app.api.tgi.replies import GenerateResponse, StreamResponse
from app.api.tgi.requests import CompatGenerateRequest, GenerateRequest
from app.api.tgi.tokens import ChatTokenizeResponse, SimpleToken, TokenizeRequest, chat_tokenize, tokenize

_TOO_LONG = {413: "The body is longer than MAX_BODY_BYTES, or there are too many texts or tokens."}
_READING = causes(400, 408, 413, 415, 422, 429, 500, 503, 504)
GENERATING = _READING | causes(424)

_NO_TEMPLATE = "The model continues the text, without context and chat template. Unknown fields are ignored."
_LAST_EVENT = (
    " The last event has the whole text, and `details` if requested. If generation fails, it is an error."
)

TEXT_EXAMPLE: dict[str, Any] = {
    "inputs": "The capital of France is",
    "parameters": {"max_new_tokens": 10},
}
STREAM_EXAMPLE: dict[str, Any] = {**TEXT_EXAMPLE, "stream": True}
_SAMPLED: dict[str, Any] = {
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
_TEXT_EXAMPLES: dict[str, Any] = {
    "A text": TEXT_EXAMPLE,
    "With all details": {
        "inputs": "The capital of France is",
        "parameters": {
            "max_new_tokens": 5,
            "details": True,
            "decoder_input_details": True,
            "top_n_tokens": 2,
        },
    },
    "Sampled": _SAMPLED,
    "The better of two": {
        "inputs": "My name is",
        "parameters": {"max_new_tokens": 8, "best_of": 2, "do_sample": True, "details": True},
    },
    "By a regular expression": {
        "inputs": "The year of the moon landing:",
        "parameters": {"max_new_tokens": 8, "grammar": {"type": "regex", "value": "19[0-9]{2}"}},
    },
}
_EMBED_EXAMPLES: dict[str, Any] = {
    "A text": {"inputs": "The bridge opens at six.", "normalize": True},
    "Several texts, truncated": {
        "inputs": ["When does the bridge open?", "The bridge opens at six."],
        "truncate": True,
        "truncation_direction": "right",
    },
}

_GENERATE = Operation(
    method="POST",
    path="/generate",
    endpoint=generate,
    summary="Continue a text",
    description=_NO_TEMPLATE,
    body=GenerateRequest,
    examples=_TEXT_EXAMPLES,
    replies={200: Reply("The text.", {JSON: GenerateResponse})},
    errors=GENERATING,
)

_GENERATE_STREAM = Operation(
    method="POST",
    path="/generate_stream",
    endpoint=generate_stream,
    summary="Continue a text, streamed by token",
    description=_NO_TEMPLATE + _LAST_EVENT,
    body=GenerateRequest,
    examples={
        "A text": TEXT_EXAMPLE,
        "With details": {"inputs": "The sea is", "parameters": {"max_new_tokens": 8, "details": True}},
        "Sampled": _SAMPLED,
    },
    replies={200: Reply("An event for each token.", {EVENTS: StreamResponse | ErrorResponse})},
    errors=GENERATING,
)

_EMBED = Operation(
    method="POST",
    path="/embed",
    endpoint=embed,
    embeds=True,
    summary="Embed texts",
    description=(
        "As in Text Embeddings Inference. Requires an embedding model: KNOWLEDGE=on or EMBEDDING_MODEL."
    ),
    body=EmbedRequest,
    examples=_EMBED_EXAMPLES,
    replies={200: Reply("A vector for each text.", {JSON: list[list[float]]})},
    errors=_READING | causes(501) | _TOO_LONG,
)

_COMPAT = Operation(
    method="POST",
    path="/",
    endpoint=embed_or_generate,
    summary="Continue a text, whole or streamed; or embed texts",
    description=(
        "Like `/generate_stream` with `stream`; else like `/generate`, with the answer in a list. "
        f"{_NO_TEMPLATE}\n\nA body with a list of `inputs`, or with another field of `/embed`, is answered "
        "like `/embed`. So is a body with only `inputs` from huggingface_hub, for its `feature_extraction`."
    ),
    body=CompatGenerateRequest | EmbedRequest,
    examples={**_TEXT_EXAMPLES, "Streamed": STREAM_EXAMPLE, "Vectors": _EMBED_EXAMPLES["A text"]},
    replies={
        200: Reply(
            "The text, or the vectors.",
            {
                JSON: list[GenerateResponse] | list[list[float]],
                EVENTS: StreamResponse | ErrorResponse,
            },
        ),
    },
    errors=GENERATING | causes(501),
)

_NAMED = {"name": "A name of `/v1/models`. A server with one model accepts any name."}

_TOKENIZE = Operation(
    method="POST",
    path="/tokenize",
    endpoint=tokenize,
    summary="List the tokens of a text",
    body=TokenizeRequest,
    examples={"A text": {"inputs": "Where is located Paris ?"}},
    replies={200: Reply("The tokens.", {JSON: list[SimpleToken]})},
    errors=_READING,
)

_CHAT_TOKENIZE = Operation(
    method="POST",
    path="/chat_tokenize",
    endpoint=chat_tokenize,
    summary="List the tokens of a conversation",
    description="The prompt of the conversation: with its context, rendered by the chat template.",
    body=ChatRequest,
    examples={"A question": CHAT_EXAMPLES["A question"]},
    replies={200: Reply("The tokens and the text.", {JSON: ChatTokenizeResponse})},
    errors=_READING | causes(404),
)

_INFO = Operation(
    method="GET",
    path="/info",
    endpoint=info,
    summary="Describe the model and the limits of requests",
    replies={200: Reply("The model and the limits.", {JSON: Info})},
    errors=causes(500, 503),
)

DIALECT = Dialect(
    name="Text Generation Inference",
    description="The routes of Hugging Face's servers.",
    error=ERRORS,
    operations=(
        _GENERATE,
        _GENERATE_STREAM,
        _EMBED,
        _COMPAT,
        # The longer path first, because a path parameter also matches slashes.
        replace(
            _COMPAT, path="/model/{name:path}/", parameters=_NAMED, errors={**_COMPAT.errors, **causes(404)}
        ),
        replace(
            _COMPAT, path="/model/{name:path}", parameters=_NAMED, errors={**_COMPAT.errors, **causes(404)}
        ),
        _TOKENIZE,
        _CHAT_TOKENIZE,
        _INFO,
    ),
)
