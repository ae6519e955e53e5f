"""The routes of reranking."""

from __future__ import annotations

from typing import Any

from app.api.dialect import JSON, Dialect, Operation, Reply, causes
from app.api.rerank.errors import ERRORS
from app.api.rerank.rerank import Rank, RerankReply, RerankRequest, rerank

_DOCUMENTS = ["The ferry is called the Patient Heron.", "The Wren Bridge opens at 06:25."]
_EXAMPLES: dict[str, Any] = {
    "Documents": {"query": "When does the bridge open?", "documents": _DOCUMENTS},
    "The best one, repeated": {
        "query": "When does the bridge open?",
        "documents": [{"text": text} for text in _DOCUMENTS],
        "top_n": 1,
        "return_documents": True,
    },
    "As in Text Embeddings Inference": {
        "query": "When does the bridge open?",
        "texts": _DOCUMENTS,
        "return_text": True,
    },
}


def _operation(path: str) -> Operation:
    return Operation(
        method="POST",
        path=path,
        endpoint=rerank,
        embeds=True,
        summary="Rank documents by their relevance to a query",
        description="Requires RERANK_MODEL, or an embedding model and RERANK_WITH_EMBEDDINGS=on.",
        body=RerankRequest,
        examples=_EXAMPLES,
        replies={
            200: Reply("The documents, best first. With `texts`: a list.", {JSON: RerankReply | list[Rank]})
        },
        errors=causes(400, 408, 415, 422, 429, 500, 503, 504)
        | {
            413: "The body is longer than MAX_BODY_BYTES, or a text has too many tokens.",
            501: "The server was started without a reranker.",
        },
    )


DIALECT = Dialect(
    name="Reranking",
    description="The routes of Cohere, Jina and Text Embeddings Inference.",
    error=ERRORS,
    operations=tuple(_operation(path) for path in ("/v1/rerank", "/v2/rerank", "/rerank")),
)
