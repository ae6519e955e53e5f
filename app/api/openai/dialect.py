"""The routes of the OpenAI dialect."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from app.api.dialect import EVENTS, JSON, Dialect, Operation, Reply, causes
from app.api.http.fields import EXAMPLE_CONVERSATION
from app.api.openai import knowledge
from app.api.openai.chat import chat_completions
from app.api.openai.completions import completions
from app.api.openai.decisions import DecisionReply, DecisionRequest, decisions
from app.api.openai.embeddings import EmbeddingList, EmbeddingsRequest, embeddings
from app.api.openai.errors import ERRORS, OpenAIErrorResponse
from app.api.openai.models import ModelEntry, ModelList, model, models
from app.api.openai.replies import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from app.api.openai.requests import ChatRequest, CompletionRequest

_KNOWLEDGE = "Knowledge base"

_ERRORS = causes(408, 413, 415, 429, 500, 503, 504) | {
    400: "The request is invalid. `param` is the field, `message` has the allowed values."
}
_STREAM = (
    "\n\nWith `stream`, the data of each event is a chunk, and the last event is `[DONE]`. If generation "
    "fails, the last event has the name `error`."
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
        "messages": EXAMPLE_CONVERSATION,
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
    "A required tool call": {
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
    "Log-probabilities of a text": {
        "prompt": "Paris is in France.",
        "max_tokens": 0,
        "echo": True,
        "logprobs": 1,
    },
}

_CHAT = Operation(
    method="POST",
    path="/v1/chat/completions",
    endpoint=chat_completions,
    summary="Answer a conversation",
    description=(
        "A conversation without a system message has the prompt of the default context, or of `context`. "
        "If the last message is the assistant's, the answer continues it. Missing parameters come from the "
        "context and the settings." + _STREAM
    ),
    body=ChatRequest,
    examples=CHAT_EXAMPLES,
    replies={
        200: Reply("The answer.", {JSON: ChatCompletion, EVENTS: ChatCompletionChunk | OpenAIErrorResponse})
    },
    errors=_ERRORS | causes(404),
)

_COMPLETIONS = Operation(
    method="POST",
    path="/v1/completions",
    endpoint=completions,
    summary="Complete one or several texts",
    description="The model continues the text, without context and chat template." + _STREAM,
    body=CompletionRequest,
    examples=COMPLETION_EXAMPLES,
    replies={200: Reply("The texts.", {JSON: Completion, EVENTS: CompletionChunk | OpenAIErrorResponse})},
    errors=_ERRORS | causes(404),
)

_EMBEDDINGS = Operation(
    method="POST",
    path="/v1/embeddings",
    endpoint=embeddings,
    embeds=True,
    summary="Embed texts",
    description=(
        "Returns a vector for each text. Requires an embedding model: KNOWLEDGE=on or EMBEDDING_MODEL. Texts "
        "longer than the maximum input of the model are rejected."
    ),
    body=EmbeddingsRequest,
    examples={
        "A text": {"model": "any", "input": "The bridge opens at six."},
        "Several texts, compactly": {
            "input": ["When does the bridge open?", "The bridge opens at six."],
            "encoding_format": "base64",
        },
    },
    replies={200: Reply("The vectors.", {JSON: EmbeddingList})},
    errors=_ERRORS | causes(501),
)

_DECISIONS = Operation(
    method="POST",
    path="/v1/decisions",
    endpoint=decisions,
    summary="Answer typed questions about one input with probabilities",
    description=(
        "The input is computed once for all questions, and the prefix cache keeps it. A refusal says why its "
        "question cannot be answered."
    ),
    body=DecisionRequest,
    examples={
        "Three questions": {
            "model": "any",
            "input": "I was charged twice. Please refund me today.",
            "questions": [
                {"type": "predicate", "instructions": "The message is about billing."},
                {
                    "type": "choice",
                    "name": "reply",
                    "instructions": "Does it need a reply?",
                    "choices": [{"value": True}, {"value": False, "description": "Nothing is asked."}],
                },
                {
                    "type": "score",
                    "instructions": "How urgent is it?",
                    "levels": [{"label": "can wait"}, {"label": "today"}],
                },
            ],
        }
    },
    replies={200: Reply("The answers.", {JSON: DecisionReply})},
    errors=_ERRORS | causes(404),
)

_MODELS = Operation(
    method="GET",
    path="/v1/models",
    endpoint=models,
    summary="List the models",
    replies={200: Reply("The models.", {JSON: ModelList})},
    errors=causes(500, 503),
)

_MODEL = Operation(
    method="GET",
    path="/v1/models/{name:path}",
    endpoint=model,
    summary="Describe a model",
    parameters={"name": "The id of the model in `/v1/models`."},
    replies={200: Reply("The model.", {JSON: ModelEntry})},
    errors=causes(500, 503) | {404: "The model does not exist."},
)

_KNOWLEDGE_STATE = Operation(
    method="GET",
    path="/v1/knowledge",
    endpoint=knowledge.state,
    group=_KNOWLEDGE,
    summary="List the documents and their state",
    replies={200: Reply("The knowledge base.", {JSON: knowledge.KnowledgeState})},
    errors=causes(500, 501, 503),
)

_UPLOAD = Operation(
    method="PUT",
    path="/v1/knowledge/documents/{name}",
    endpoint=knowledge.upload,
    group=_KNOWLEDGE,
    summary="Store a document",
    description="The body is the file. It is stored in `uploads/` below DATA_PATH.",
    parameters={"name": "File name without path: .txt, .md, .html, .pdf or .docx."},
    replies={201: Reply("The document is stored. It is indexed soon.", {JSON: knowledge.StoredDocument})},
    errors=causes(408, 500, 501, 503)
    | {400: "The name is not allowed.", 403: "The key has no `uploads`."}
    | {413: "The document is larger than the knowledge base reads."},
    is_served=lambda settings: settings.knowledge_uploads == "on",
)
_SEARCH = Operation(
    method="POST",
    path="/v1/knowledge/search",
    endpoint=knowledge.search,
    group=_KNOWLEDGE,
    embeds=True,
    summary="Search the documents",
    description=(
        "Combines vector search (cosine similarity) and keyword search (BM25). Passages with a similarity "
        "below `threshold` are omitted."
    ),
    body=knowledge.SearchRequest,
    examples={
        "A question": {"query": "When does the bridge open?"},
        "The two nearest passages, at any distance": {"query": "opening hours", "top_k": 2, "threshold": -1},
    },
    replies={200: Reply("The passages.", {JSON: knowledge.PassageList})},
    errors=causes(408, 413, 415, 429, 500, 501, 503, 504)
    | {400: "The body is invalid, or names a document that does not exist."},
)


def _without_version(operation: Operation) -> Operation:
    """The same operation at a path without ``/v1``."""
    return replace(operation, path=operation.path.removeprefix("/v1"))


DIALECT = Dialect(
    name="OpenAI",
    description="The routes of OpenAI's API.",
    error=ERRORS,
    operations=(
        _CHAT,
        _COMPLETIONS,
        _EMBEDDINGS,
        _DECISIONS,
        _MODELS,
        _MODEL,
        *map(_without_version, (_CHAT, _COMPLETIONS, _EMBEDDINGS, _MODELS, _MODEL)),
        _KNOWLEDGE_STATE,
        _SEARCH,
        _UPLOAD,
    ),
    groups={_KNOWLEDGE: "Documents for answers."},
)
