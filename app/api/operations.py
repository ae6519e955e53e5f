"""Every route that answers, described: those of the dialects and our own."""

from __future__ import annotations

from typing import Any

from app.api.openai import dialect as openai
from app.api.openapi import JSON, Answer, Operation, Operations, causes, document
from app.api.tgi import dialect as tgi
from app.api.tokenstream import knowledge
from app.api.tokenstream.replies import Contexts, Failed, Figures, Health, NotReady, Problem, Ready
from app.api.tokenstream.token_stream import TokenStreamRequest

_OWN, _OPERATION, _PAGES = "Token stream", "Operation", "Pages"
_TAGS = {
    _OWN: "A query in, the raw text of the answer out.",
    openai.TAG: "What OpenAI's clients speak.",
    tgi.TAG: "What the clients of Hugging Face's server speak.",
    knowledge.TAG: "The documents that answers draw on.",
    _OPERATION: "For operators.",
    _PAGES: "For the browser.",
}

_TOKEN_STREAM = Operation(
    tag=_OWN,
    summary="Answer a query, streamed as plain text",
    description=(
        "The first byte comes with the first token; closing the connection ends the work. What is left out "
        "is taken from the context and the settings. With `details` the text is followed by the character "
        "U+001E and one JSON object: `Figures`, or a `Problem` where the answer cannot be completed. "
        "Without, such an answer ends without its last chunk."
    ),
    body=TokenStreamRequest,
    examples={
        "A question": {"query": "Where is located Paris ?"},
        "In another context": {
            "query": "List the names of all customers from Paris.",
            "context": "sql",
            "max_tokens": 60,
        },
        "A conversation, drawn, with figures": {
            "messages": [
                {"role": "system", "content": "Answer in one sentence."},
                {"role": "user", "content": "What is the capital of France?"},
                {"role": "assistant", "content": "Paris."},
                {"role": "user", "content": "And of Italy?"},
            ],
            "max_tokens": 40,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 42,
            "stop": ["\n\n"],
            "details": True,
        },
    },
    answers={
        200: Answer(
            "The text of the answer.",
            {"text/plain": str},
            may_have={
                "X-Sources": "A JSON list of the passages of documents that it draws on, without their texts."
            },
        )
    },
    error=Problem,
    errors=causes(400, 404, 413, 415, 422, 429, 500, 501, 503),
)

_METRICS = Operation(
    tag=_OPERATION,
    summary="Measurements for Prometheus",
    answers={
        200: Answer(
            "In the format that the Accept header asks for.",
            {"text/plain": str, "application/openmetrics-text": str},
        )
    },
    error=Problem,
    errors=causes(500),
)

_DOCUMENT = Operation(
    tag=_PAGES,
    summary="This description",
    answers={200: Answer("An OpenAPI 3.1 document.", {JSON: dict[str, Any]})},
    error=Problem,
    errors=causes(500),
    is_open=True,
)


def _page(summary: str) -> Operation:
    return Operation(
        tag=_PAGES,
        summary=summary,
        answers={200: Answer("The page.", {"text/html": str})},
        error=Problem,
        errors=causes(500),
        is_open=True,
    )


_OTHERS: Operations = {
    ("GET", "/contexts"): Operation(
        tag=_OPERATION,
        summary="List the contexts",
        answers={200: Answer("Their names.", {JSON: Contexts})},
        error=Problem,
        errors=causes(500),
    ),
    ("GET", "/health"): Operation(
        tag=_OPERATION,
        summary="Whether the process serves",
        answers={
            200: Answer("It does.", {JSON: Health}),
            503: Answer(
                "The engine failed.",
                {JSON: Failed},
                {"Retry-After": "Seconds after which trying again makes sense."},
            ),
        },
        error=Problem,
        errors=causes(500),
        is_open=True,
    ),
    ("GET", "/ready"): Operation(
        tag=_OPERATION,
        summary="Whether requests are answered",
        answers={
            200: Answer("They are.", {JSON: Ready}),
            503: Answer(
                "The model is still loading, or the engine failed.",
                {JSON: NotReady},
                {"Retry-After": "Seconds after which trying again makes sense."},
            ),
        },
        error=Problem,
        errors=causes(500),
        is_open=True,
    ),
}

_FOR_BROWSERS: Operations = {
    ("GET", "/"): _page("The page for questions"),
    ("GET", "/docs"): _page("Swagger UI"),
    ("GET", "/swagger-ui"): _page("Swagger UI"),
    ("GET", "/swagger-ui/"): _page("Swagger UI"),
    ("GET", "/openapi.json"): _DOCUMENT,
    ("GET", "/api-docs/openapi.json"): _DOCUMENT,
}


def operations(*, metrics_here: bool) -> Operations:
    """What there is; ``metrics_here`` is off where /metrics has an address of its own."""
    return {
        ("POST", "/token_stream"): _TOKEN_STREAM,
        **openai.OPERATIONS,
        **tgi.OPERATIONS,
        **knowledge.OPERATIONS,
        **_OTHERS,
        **({("GET", "/metrics"): _METRICS} if metrics_here else {}),
        **_FOR_BROWSERS,
    }


def api_document(*, metrics_here: bool, needs_key: bool) -> dict[str, Any]:
    """The OpenAPI document of the server."""
    return document(operations(metrics_here=metrics_here), _TAGS, needs_key=needs_key, also=(Figures,))
