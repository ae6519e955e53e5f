"""The passages of documents that an answer draws on: how requests choose them, how answers name them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.knowledge.chunk import Passage
from app.service import KnowledgeUse

# Names the sources of an answer before its first byte. Proxies refuse long headers, some from 4 KB in all.
HEADER = "X-Sources"
_LONGEST_HEADER = 3000


class KnowledgeChoice(BaseModel):
    """Which documents an answer draws on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    files: Annotated[
        list[str], Field(min_length=1, max_length=1000, description="Names as GET /v1/knowledge lists them.")
    ]


def _checked(choice: Any) -> Any:
    if choice is None or isinstance(choice, bool | dict | KnowledgeChoice):
        return choice
    raise ValueError('should be true, false or {"files": ["…"]}')


KnowledgeField = Annotated[
    bool | KnowledgeChoice | None,
    BeforeValidator(_checked, json_schema_input_type=bool | KnowledgeChoice | None),
    Field(
        description="Whether the answer draws on the documents of the knowledge base, or on which of them; "
        "what is left out is up to the context."
    ),
]


class Source(BaseModel):
    """A passage of a document."""

    file: str
    heading: Annotated[str, Field(description="The headings above it, outermost first.")]
    page: Annotated[int | None, Field(description="From 1, in formats that have pages.")]
    position: Annotated[int, Field(description="From 0 among the passages of its document.")]
    text: str
    cosine: Annotated[float, Field(description="The cosine of its vector and the question's.")]
    score: Annotated[float, Field(description="Vectors and words fused: by it passages are ranked.")]


def knowledge_use(choice: bool | KnowledgeChoice | None) -> KnowledgeUse:
    """What a request asks of the knowledge base."""
    if isinstance(choice, KnowledgeChoice):
        return KnowledgeUse(True, tuple(choice.files))
    return KnowledgeUse(choice)


def source(passage: Passage) -> Source:
    """A passage, as answers have it."""
    chunk = passage.chunk
    return Source(
        file=chunk.file,
        heading=chunk.heading,
        page=chunk.page,
        position=chunk.position,
        text=chunk.text,
        cosine=round(passage.cosine, 4),
        score=round(passage.score, 6),
    )


def header(passages: Sequence[Passage]) -> dict[str, str]:
    """The header that names them: a JSON list in ASCII, best first, without their texts."""
    named: list[str] = []
    for passage in passages:
        fields = source(passage).model_dump(include={"file", "heading", "page", "cosine"})
        named.append(json.dumps(fields))
        if sum(map(len, named)) > _LONGEST_HEADER:
            named.pop()
            break
    return {HEADER: f"[{', '.join(named)}]"} if named else {}
