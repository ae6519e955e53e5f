"""The routes of Ollama's API."""

from __future__ import annotations

from typing import Any

from app.api.dialect import JSON, NDJSON, Dialect, Operation, Reply, causes
from app.api.http.sources import HEADER, WAITING_HEADER
from app.api.ollama import models
from app.api.ollama.chat import chat, generate
from app.api.ollama.embed import embed, embeddings
from app.api.ollama.errors import ERRORS, ErrorReply
from app.api.ollama.replies import (
    ChatReply,
    EmbeddingReply,
    EmbedReply,
    GenerateReply,
    OllamaModelList,
    PullStatus,
    RunningModels,
    Shown,
    Version,
)
from app.api.ollama.requests import (
    ModelRequest,
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
)

_READING = causes(408, 413, 415, 429, 500, 503, 504) | {400: "The body is invalid, or has too many tokens."}
_UNKNOWN = {404: "The server does not have the model. The error tells how to serve another one."}
_FOUND = {
    HEADER: "JSON list of the passages in the prompt, without their texts.",
    WAITING_HEADER: "Number of new and changed documents that the search did not know.",
}
_QUESTION: dict[str, Any] = {"role": "user", "content": "Where is located Paris ?"}
_WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
_MOOD: dict[str, Any] = {
    "type": "object",
    "properties": {"mood": {"enum": ["positive", "negative"]}},
    "required": ["mood"],
    "additionalProperties": False,
}


def _short(n_tokens: int, **options: Any) -> dict[str, Any]:
    return {"options": {"num_predict": n_tokens, **options}, "stream": False, "model": "any"}


_CHAT = Operation(
    method="POST",
    path="/api/chat",
    endpoint=chat,
    summary="Answer a conversation",
    description=(
        "Unless `stream` is false, the response has a line of JSON for each step. Tool calls are complete, "
        "in the line before the last. The last line has the figures. If generation fails, it is an error."
    ),
    body=OllamaChatRequest,
    examples={
        "A question": {"messages": [_QUESTION], **_short(20)},
        "Streamed": {"messages": [_QUESTION], **_short(5), "stream": True},
        "By a schema": {
            "messages": [{"role": "user", "content": "I love it."}],
            "format": _MOOD,
            **_short(20),
        },
        "With a tool": {"messages": [_QUESTION], "tools": [_WEATHER], **_short(40, temperature=0)},
        "With log-probabilities": {"messages": [_QUESTION], "logprobs": True, "top_logprobs": 2, **_short(3)},
        "Without messages": {"model": "any"},
    },
    replies={200: Reply("The answer.", {JSON: ChatReply, NDJSON: ChatReply | ErrorReply}, may_have=_FOUND)},
    errors=_READING | _UNKNOWN | causes(501),
)

_GENERATE = Operation(
    method="POST",
    path="/api/generate",
    endpoint=generate,
    summary="Answer a prompt",
    description="Streams like `/api/chat`. With `raw` or `suffix`, the model continues the text.",
    body=OllamaGenerateRequest,
    examples={
        "A question": {"prompt": "Where is located Paris ?", **_short(20)},
        "Streamed": {"prompt": "Name a colour.", "system": "Be brief.", **_short(5), "stream": True},
        "A text to continue": {"prompt": "The capital of France is", "raw": True, **_short(5)},
        "An object": {"prompt": "Name a colour and its code as JSON.", "format": "json", **_short(30)},
    },
    replies={
        200: Reply("The answer.", {JSON: GenerateReply, NDJSON: GenerateReply | ErrorReply}, may_have=_FOUND)
    },
    errors=_READING | _UNKNOWN | causes(501),
)

_EMBED = Operation(
    method="POST",
    path="/api/embed",
    endpoint=embed,
    embeds=True,
    summary="Embed texts",
    description="Requires an embedding model: KNOWLEDGE=on or EMBEDDING_MODEL.",
    body=OllamaEmbedRequest,
    examples={"Texts": {"model": "any", "input": ["When does the bridge open?", "The bridge opens at six."]}},
    replies={200: Reply("The vectors.", {JSON: EmbedReply})},
    errors=_READING | causes(501),
)

_EMBEDDINGS = Operation(
    method="POST",
    path="/api/embeddings",
    endpoint=embeddings,
    embeds=True,
    summary="Embed a text",
    description="The older form of `/api/embed`.",
    body=OllamaEmbeddingsRequest,
    examples={"A text": {"model": "any", "prompt": "The bridge opens at six."}},
    replies={200: Reply("The vector.", {JSON: EmbeddingReply})},
    errors=_READING | causes(501),
)

_TAGS = Operation(
    method="GET",
    path="/api/tags",
    endpoint=models.tags,
    summary="List the models",
    replies={200: Reply("The language model, then the embedding model.", {JSON: OllamaModelList})},
    errors=causes(500, 503),
)

_PS = Operation(
    method="GET",
    path="/api/ps",
    endpoint=models.running,
    summary="List the loaded models",
    replies={200: Reply("All models of the server.", {JSON: RunningModels})},
    errors=causes(500, 503),
)

_VERSION = Operation(
    method="GET",
    path="/api/version",
    endpoint=models.version,
    summary="Version of Ollama's API that these routes follow",
    is_open=True,
    replies={200: Reply("The version.", {JSON: Version})},
    errors=causes(500),
)

_SHOW = Operation(
    method="POST",
    path="/api/show",
    endpoint=models.show,
    summary="Describe a model",
    body=ModelRequest,
    examples={"The language model": {"model": "SmolLM2-135M-Instruct.Q4_1"}},
    replies={200: Reply("The model and its capabilities.", {JSON: Shown})},
    errors=_READING | _UNKNOWN,
)

_PULL = Operation(
    method="POST",
    path="/api/pull",
    endpoint=models.pull,
    summary="Check that a model is served",
    description="Models are chosen when the server starts. A server with one model accepts any name. With "
    "several, the error for another name tells how to serve it.",
    body=ModelRequest,
    examples={"The language model": {"model": "SmolLM2-135M-Instruct.Q4_1", "stream": False}},
    replies={200: Reply("The model is served.", {JSON: PullStatus, NDJSON: PullStatus})},
    errors=_READING | _UNKNOWN,
)

DIALECT = Dialect(
    name="Ollama",
    description="The routes of Ollama's API.",
    error=ERRORS,
    operations=(_CHAT, _GENERATE, _EMBED, _EMBEDDINGS, _TAGS, _PS, _VERSION, _SHOW, _PULL),
)
