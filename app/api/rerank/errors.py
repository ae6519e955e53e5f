"""Errors of reranking: Cohere's clients read ``message``, those of Text Embeddings Inference ``error``."""

from __future__ import annotations

from typing_extensions import TypedDict

from app.api.dialect import ErrorFormat, Problem


class RerankError(TypedDict):
    """Reason for a rejected or failed request."""

    message: str
    error: str
    error_type: str


def rerank_status(problem: Problem) -> int:
    """Text Embeddings Inference responds 413 for what is too long."""
    return 413 if problem.kind == "too_long" else problem.status


def rerank_body(problem: Problem) -> RerankError:
    return {"message": problem.message, "error": problem.message, "error_type": problem.kind}


ERRORS = ErrorFormat(RerankError, rerank_body, rerank_status)
