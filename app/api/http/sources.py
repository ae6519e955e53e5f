"""Documents in requests, and citations of passages in responses."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import TypedDict

from app.service import Generation, KnowledgeUse, Passage

# Header with the sources of an answer. Some proxies reject more than 4 KB of headers.
HEADER = "X-Sources"
WAITING_HEADER = "X-Sources-Waiting"
_LONGEST_HEADER = 3000


Waiting = Annotated[
    int,
    Field(description="New and changed documents that the search did not know. Missing if there are none."),
]


class KnowledgeChoice(BaseModel):
    """The documents that an answer may use."""

    model_config = ConfigDict(extra="forbid", strict=True)

    files: Annotated[
        list[str], Field(min_length=1, max_length=1000, description="Names from GET /v1/knowledge.")
    ]


def _checked(choice: Any) -> Any:
    if choice is None or isinstance(choice, bool | dict | KnowledgeChoice):
        return choice
    raise ValueError('should be true, false or {"files": ["…"]}')


KnowledgeField = Annotated[
    bool | KnowledgeChoice | None,
    BeforeValidator(_checked, json_schema_input_type=bool | KnowledgeChoice | None),
    Field(
        description="Whether the answer uses the knowledge base, or the documents to use. Default: the "
        "context's setting."
    ),
]


class Source(TypedDict):
    """A passage of a document."""

    file: str
    heading: Annotated[str, Field(description="Headings above it, outermost first.")]
    page: Annotated[int | None, Field(description="From 1, in formats with pages.")]
    position: Annotated[int, Field(description="Index among the passages of its document, from 0.")]
    text: str
    cosine: Annotated[float, Field(description="Cosine similarity of passage and question.")]
    score: Annotated[float, Field(description="Combined score of vector and keyword search.")]


def knowledge_use(choice: bool | KnowledgeChoice | None) -> KnowledgeUse:
    if isinstance(choice, KnowledgeChoice):
        return KnowledgeUse(True, tuple(choice.files))
    return KnowledgeUse(choice)


def source(passage: Passage) -> Source:
    chunk = passage.chunk
    return {
        "file": chunk.file,
        "heading": chunk.heading,
        "page": chunk.page,
        "position": chunk.position,
        "text": chunk.text,
        "cosine": round(passage.cosine, 4),
        "score": round(passage.score, 6),
    }


def headers(generation: Generation) -> dict[str, str]:
    """The headers of an answer: its passages, and the number of documents that the search did not know.

    The passages are an ASCII JSON list, best first, without their texts.
    """
    found = {WAITING_HEADER: str(generation.n_waiting)} if generation.n_waiting else {}
    cited: list[str] = []
    for passage in generation.sources:
        fields = source(passage)
        cited.append(json.dumps({name: fields[name] for name in ("file", "heading", "page", "cosine")}))
        if sum(map(len, cited)) > _LONGEST_HEADER:
            cited.pop()
            break
    return found | ({HEADER: f"[{', '.join(cited)}]"} if cited else {})
