"""Chunks of documents."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document that fits into the context of the embedding model.

    Attributes:
        file: The document's path relative to the documents' folder, with forward slashes.
        position: Index within the document, from 0.
        heading: Headings above it, outermost first, joined by `` › ``; may be empty.
        page: Page number from 1, in formats with pages.
        text: Content.
    """

    file: str
    position: int
    heading: str
    page: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk found for a query.

    Attributes:
        chunk: The chunk.
        cosine: Cosine of its vector and the query's.
        score: Combined score by vectors and words; higher is better.
    """

    chunk: Chunk
    cosine: float
    score: float
