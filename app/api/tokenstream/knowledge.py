"""``/v1/knowledge``: the documents that answers draw on, and a search in them."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.http.body import read_json
from app.api.http.sources import Source, source
from app.api.http.waiting import while_connected
from app.api.openai.replies import OpenAIErrorResponse
from app.api.openapi import JSON, Answer, Operation, Operations, causes
from app.engine.embedder import EmbeddingError
from app.knowledge.errors import StoreError
from app.service import GenerationFailed, KnowledgeFailed, NotOffered, Service
from app.service.retrieval import check_files

if TYPE_CHECKING:  # its packages are there with KNOWLEDGE=on alone
    from app.knowledge.knowledge import Knowledge

TAG = "Knowledge base"


class SearchRequest(BaseModel):
    """The body of ``POST /v1/knowledge/search``."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    query: Annotated[str, Field(min_length=1, description="What is looked for, in any words.")]
    files: Annotated[
        list[str] | None,
        Field(
            min_length=1,
            max_length=1000,
            description="The documents that are searched, by the names that GET /v1/knowledge lists; "
            "without it all.",
        ),
    ] = None
    top_k: Annotated[
        int | None, Field(ge=1, le=100, description="The most passages; without it KNOWLEDGE_TOP_K.")
    ] = None
    threshold: Annotated[
        float | None,
        Field(
            ge=-1,
            le=1,
            description="The least cosine of query and passage; without it KNOWLEDGE_THRESHOLD.",
        ),
    ] = None


class PassageList(BaseModel):
    """The passages that a search has found, best first."""

    object: Literal["list"]
    data: list[Source]


class Document(BaseModel):
    """A file of the documents' folder."""

    name: Annotated[str, Field(description="Below DATA_PATH, with forward slashes.")]
    state: Annotated[
        Literal["indexed", "waiting", "skipped"],
        Field(description="`indexed` ones are found; `waiting` ones soon; `skipped` ones cannot be read."),
    ]
    chunks: Annotated[int, Field(description="The passages it was cut into.")]
    bytes: int
    problem: Annotated[str | None, Field(description="Why it is skipped.")]


class Counts(BaseModel):
    """How many documents are in each state, and the passages of all."""

    indexed: int
    waiting: int
    skipped: int
    chunks: int


class KnowledgeState(BaseModel):
    """The knowledge base."""

    embedding_model: str
    indexing: Annotated[bool, Field(description="Whether documents are being indexed or looked for.")]
    problem: Annotated[
        str | None, Field(description="What keeps documents from being indexed, where something does.")
    ]
    counts: Counts
    documents: list[Document]


async def search(request: Request) -> Response:
    """Answer the passages that a query finds."""
    body = await read_json(request, SearchRequest)
    knowledge = _knowledge(request)
    await asyncio.to_thread(check_files, knowledge, body.files, "files")
    work = knowledge.search(body.query, files=body.files, top_k=body.top_k, threshold=body.threshold)
    try:
        passages = await while_connected(request, work)
    except EmbeddingError as error:
        raise GenerationFailed(str(error)) from error
    except StoreError as error:
        raise KnowledgeFailed(str(error)) from error
    found = PassageList(object="list", data=[source(passage) for passage in passages])
    return JSONResponse(found.model_dump())


async def state(request: Request) -> Response:
    """Answer the documents and what became of them."""
    knowledge = _knowledge(request)
    try:
        documents = await asyncio.to_thread(knowledge.documents)
    except StoreError as error:
        raise KnowledgeFailed(str(error)) from error
    in_state = Counter(document.state for document in documents)
    described = KnowledgeState(
        embedding_model=request.app.state.service.embedding_name,
        indexing=knowledge.is_indexing,
        problem=knowledge.problem,
        counts=Counts(
            indexed=in_state["indexed"],
            waiting=in_state["waiting"],
            skipped=in_state["skipped"],
            chunks=sum(document.n_chunks for document in documents),
        ),
        documents=[
            Document(name=d.name, state=d.state, chunks=d.n_chunks, bytes=d.n_bytes, problem=d.problem)
            for d in documents
        ],
    )
    return JSONResponse(described.model_dump())


def _knowledge(request: Request) -> Knowledge:
    service: Service = request.app.state.service
    _ = service.model  # what loads may still bring a knowledge base
    if service.knowledge is None:
        raise NotOffered("the knowledge base is off; start the server with KNOWLEDGE=on")
    return service.knowledge


OPERATIONS: Operations = {
    ("GET", "/v1/knowledge"): Operation(
        tag=TAG,
        summary="List the documents and their state",
        answers={200: Answer("The knowledge base.", {JSON: KnowledgeState})},
        error=OpenAIErrorResponse,
        errors=causes(500, 501, 503),
    ),
    ("POST", "/v1/knowledge/search"): Operation(
        tag=TAG,
        summary="Search the documents",
        description=(
            "Finds passages by what they mean (the cosine of vectors) and by their words (BM25), added "
            "up. Those below `threshold` are left out."
        ),
        body=SearchRequest,
        examples={
            "A question": {"query": "When does the bridge open?"},
            "The two nearest, however far": {"query": "opening hours", "top_k": 2, "threshold": -1},
        },
        answers={200: Answer("The passages.", {JSON: PassageList})},
        error=OpenAIErrorResponse,
        errors=causes(413, 415, 500, 501, 503)
        | {400: "The body is not valid, or names a document that is not there."},
    ),
}
