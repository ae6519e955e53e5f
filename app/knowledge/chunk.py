"""A piece of a document."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document, small enough for the embedding model to read whole.

    Attributes:
        file: Its document, relative to the documents' folder, with forward slashes.
        position: Counted from 0 among the chunks of its document.
        heading: The headings above it, outermost first, joined by `` › ``; empty where there are none.
        page: Counted from 1, in formats that have pages.
        text: What it says.
    """

    file: str
    position: int
    heading: str
    page: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk that may answer a question.

    Attributes:
        chunk: The chunk.
        cosine: The cosine of its vector and the question's.
        score: By which passages are ranked: vectors and words fused; higher is better.
    """

    chunk: Chunk
    cosine: float
    score: float
