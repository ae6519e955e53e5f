"""Tokenstream's routes."""

from __future__ import annotations

from app.api.dialect import JSON, Dialect, Operation, Reply, causes
from app.api.http.errors import ERRORS
from app.api.http.fields import EXAMPLE_CONVERSATION
from app.api.http.sources import HEADER, WAITING_HEADER
from app.api.tokenstream.classify import ClassesReply, ClassifyRequest, ClassReply, classify_texts
from app.api.tokenstream.replies import Figures
from app.api.tokenstream.token_stream import TokenStreamRequest, token_stream

_TOKEN_STREAM = Operation(
    method="POST",
    path="/token_stream",
    endpoint=token_stream,
    summary="Answer a query, streamed as plain text",
    description=(
        "The response begins with the first token. Closing the connection cancels generation. Missing "
        "parameters come from the context and the settings. With `details`, the character U+001E and one "
        "JSON object follow the text: `Figures`, or `ErrorBody` if generation fails. Without `details`, a "
        "response that fails ends without its last chunk."
    ),
    body=TokenStreamRequest,
    examples={
        "A question": {"query": "Where is located Paris ?"},
        "In another context": {
            "query": "List the names of all customers from Paris.",
            "context": "sql",
            "max_tokens": 60,
        },
        "A sampled conversation, with figures": {
            "messages": EXAMPLE_CONVERSATION,
            "max_tokens": 40,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 42,
            "stop": ["\n\n"],
            "details": True,
        },
    },
    replies={
        200: Reply(
            "The text of the answer.",
            {"text/plain": str},
            may_have={
                HEADER: "JSON list of the passages in the prompt, without their texts.",
                WAITING_HEADER: "Number of new and changed documents that the search did not know.",
            },
        )
    },
    errors=causes(400, 404, 408, 413, 415, 422, 429, 500, 501, 503, 504),
)

_CLASSIFY = Operation(
    method="POST",
    path="/classify",
    endpoint=classify_texts,
    summary="Classify texts, with the probability of each class",
    description=(
        "The classes are the choices of a context, or of the request. Texts are computed together, after "
        "one common prefix. No token is generated."
    ),
    body=ClassifyRequest,
    examples={
        "A text": {"query": "The battery lasts for two days!", "context": "classifier"},
        "Texts, and classes with descriptions": {
            "queries": ["I was charged twice.", "The app crashes."],
            "choices": {"billing": "charges and refunds", "technical": "errors and crashes"},
        },
    },
    replies={200: Reply("The class. With `queries`: the classes.", {JSON: ClassReply | ClassesReply})},
    errors=causes(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
)

DIALECT = Dialect(
    name="Token stream",
    description="Plain text of an answer to a query, and classes of texts.",
    error=ERRORS,
    operations=(_TOKEN_STREAM, _CLASSIFY),
    schemas=(Figures,),
)
