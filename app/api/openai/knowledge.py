"""``/v1/knowledge``: list, search and store the documents of the knowledge base."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated, Literal

import anyio
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from app.api.dialect import Problem
from app.api.http.auth import client_of
from app.api.http.body import read_json
from app.api.http.problems import ApiError
from app.api.http.sources import Source, source
from app.api.http.waiting import while_connected
from app.service import (
    MOST_BYTES,
    UPLOADS,
    Service,
    TooLarge,
    check_upload,
    list_documents,
    required_knowledge,
    search_documents,
    store_upload,
)


class SearchRequest(BaseModel):
    """The body of ``POST /v1/knowledge/search``."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    query: Annotated[str, Field(min_length=1, description="Text to search for.")]
    files: Annotated[
        list[str] | None,
        Field(
            min_length=1,
            max_length=1000,
            description="Documents to search, by the names of GET /v1/knowledge. Default: all.",
        ),
    ] = None
    top_k: Annotated[
        int | None, Field(ge=1, le=100, description="Maximum passages. Default: KNOWLEDGE_TOP_K.")
    ] = None
    threshold: Annotated[
        float | None,
        Field(
            ge=-1,
            le=1,
            description="Minimum cosine similarity of query and passage. Default: KNOWLEDGE_THRESHOLD.",
        ),
    ] = None


class PassageList(TypedDict):
    """The passages found, best first."""

    object: Literal["list"]
    data: list[Source]


class Document(TypedDict):
    """A file in DATA_PATH."""

    name: Annotated[str, Field(description="Path below DATA_PATH, with forward slashes.")]
    state: Annotated[
        Literal["indexed", "waiting", "skipped"],
        Field(
            description="`indexed`: searchable. `waiting`: new or changed, and not indexed yet. "
            "`skipped`: not readable."
        ),
    ]
    chunks: Annotated[
        int, Field(description="Number of its searchable passages; those of a changed file are old.")
    ]
    bytes: int
    problem: Annotated[str | None, Field(description="Reason why it is skipped.")]
    waiting_since: Annotated[
        float | None, Field(description="Time of its first change that is not indexed, in s since 1970.")
    ]


class StoredDocument(TypedDict):
    """A document that was stored."""

    name: Annotated[str, Field(description="Path below DATA_PATH.")]
    bytes: int


class Counts(TypedDict):
    """Number of documents by state, and of passages."""

    indexed: int
    waiting: int
    skipped: int
    chunks: int


class KnowledgeState(TypedDict):
    """The knowledge base."""

    embedding_model: str
    indexing: Annotated[bool, Field(description="Whether documents wait to be indexed.")]
    problem: Annotated[str | None, Field(description="Reason why indexing is not possible.")]
    waiting_since: Annotated[
        float | None, Field(description="Earliest of the documents' times; null if none waits.")
    ]
    counts: Counts
    documents: list[Document]


async def search(request: Request) -> Response:
    body = await read_json(request, SearchRequest)
    knowledge = required_knowledge(_service(request).knowledge)
    work = search_documents(
        knowledge, body.query, files=body.files, top_k=body.top_k, threshold=body.threshold
    )
    passages = await while_connected(request, work)
    found: PassageList = {"object": "list", "data": [source(passage) for passage in passages]}
    return JSONResponse(found)


async def state(request: Request) -> Response:
    service = _service(request)
    knowledge = required_knowledge(service.knowledge)
    documents = await asyncio.to_thread(list_documents, knowledge)
    in_state = Counter(document.state for document in documents)
    body: KnowledgeState = {
        "embedding_model": service.embedding_name or "",
        "indexing": knowledge.is_indexing,
        "problem": knowledge.problem,
        "waiting_since": min((d.waiting_since for d in documents if d.waiting_since), default=None),
        "counts": {
            "indexed": in_state["indexed"],
            "waiting": in_state["waiting"],
            "skipped": in_state["skipped"],
            "chunks": sum(document.n_chunks for document in documents),
        },
        "documents": [
            {
                "name": d.name,
                "state": d.state,
                "chunks": d.n_chunks,
                "bytes": d.n_bytes,
                "problem": d.problem,
                "waiting_since": d.waiting_since,
            }
            for d in documents
        ],
    }
    return JSONResponse(body)


async def upload(request: Request) -> Response:
    service = _service(request)
    required_knowledge(service.knowledge)
    check_upload(client_of(request))
    name = request.path_params["name"]
    try:
        size = await store_upload(service.settings.data_path, name, _parts(request))
    except TooLarge:
        message = f"the document is larger than {MOST_BYTES} bytes"
        raise ApiError(Problem(413, "body_too_large", message)) from None
    stored: StoredDocument = {"name": f"{UPLOADS}/{name}", "bytes": size}
    return JSONResponse(stored, 201)


async def _parts(request: Request) -> AsyncIterator[bytes]:
    """The parts of a body. Each must arrive within READ_TIMEOUT.

    Raises:
        ApiError: 408 a part did not arrive in time.
    """
    seconds = _service(request).settings.read_timeout
    stream = request.stream()
    while True:
        with anyio.move_on_after(seconds) as limit:
            part = await anext(stream, None)
        if limit.cancelled_caught:
            message = f"no part of the body arrived in {seconds:g} s (READ_TIMEOUT)"
            raise ApiError(Problem(408, "read_timeout", message))
        if part is None:
            break
        yield part
    request.state.is_body_read = True


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    _ = service.model  # raises Loading: the knowledge base is opened before the model is ready
    return service
