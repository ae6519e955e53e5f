"""``POST /v1/rerank``, ``/v2/rerank`` and ``/rerank``."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import NotRequired, TypedDict

from app.api.http.auth import client_of
from app.api.http.body import read_json
from app.api.http.waiting import while_connected
from app.service import Ranking, Service

_MOST_DOCUMENTS = 1000  # as in Cohere's API


class TextDocument(BaseModel):
    """A document as an object."""

    model_config = ConfigDict(extra="ignore", strict=True)

    text: str


class RerankRequest(BaseModel):
    """The body of a request. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    query: Annotated[str, Field(min_length=1)]
    documents: Annotated[
        list[str | TextDocument] | None,
        Field(
            min_length=1, max_length=_MOST_DOCUMENTS, description="The documents. Long ones are truncated."
        ),
    ] = None
    texts: Annotated[
        list[str] | None,
        Field(
            min_length=1,
            max_length=_MOST_DOCUMENTS,
            description="Instead of `documents`: the form of Text Embeddings Inference.",
        ),
    ] = None
    model: Annotated[str | None, Field(description="Any name. The model of the server ranks.")] = None
    top_n: Annotated[int | None, Field(ge=1, description="Number of results. Default: all.")] = None
    return_documents: Annotated[bool | None, Field(description="Repeat the documents.")] = None
    raw_scores: Annotated[bool | None, Field(description="With `texts`: the outputs of the model.")] = None
    return_text: Annotated[bool | None, Field(description="With `texts`: repeat them.")] = None
    truncate: Annotated[
        bool | None, Field(description="With `texts`: truncate long ones. Default: reject them.")
    ] = None

    @model_validator(mode="after")
    def _has_documents(self) -> RerankRequest:
        if self.documents is None and self.texts is None:
            raise ValueError("documents: is required, or texts instead")
        if self.documents is not None and self.texts is not None:
            raise ValueError("texts: cannot be combined with documents")
        return self


class ResultDocument(TypedDict):
    """A document of the request."""

    text: str


class Result(TypedDict):
    """A document and its relevance."""

    index: Annotated[int, Field(description="Index in the request, from 0.")]
    relevance_score: Annotated[
        float, Field(description="0 to 1 by a reranker; a cosine by an embedding model.")
    ]
    document: NotRequired[ResultDocument]


class RerankUsage(TypedDict):
    """Tokens of the request."""

    prompt_tokens: int
    total_tokens: int


class BilledUnits(TypedDict):
    """Units of Cohere's prices."""

    search_units: int


class Meta(TypedDict):
    """Cohere's metadata."""

    billed_units: BilledUnits


class RerankReply(TypedDict):
    """The most relevant documents, best first."""

    id: str
    object: Literal["list"]
    model: str
    results: list[Result]
    usage: RerankUsage
    meta: Meta


class Rank(TypedDict):
    """A text and its relevance, as in Text Embeddings Inference."""

    index: int
    score: float
    text: NotRequired[str]


async def rerank(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_json(request, RerankRequest)
    client, encoders = client_of(request), service.encoders
    if body.texts is not None:
        truncate = bool(body.truncate)
        work = encoders.rerank(body.query, body.texts, field="texts", truncate=truncate, client=client)
        return JSONResponse(_ranks(body, body.texts, await while_connected(request, work)))
    documents = [text if isinstance(text, str) else text.text for text in body.documents or ()]
    ranking = await while_connected(request, encoders.rerank(body.query, documents, client=client))
    return JSONResponse(_reply(body, documents, ranking))


def _best_first(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def _ranks(body: RerankRequest, texts: list[str], ranking: Ranking) -> list[Rank]:
    scores = ranking.raw if body.raw_scores else ranking.scores
    ranks: list[Rank] = []
    for index in _best_first(scores):
        one: Rank = {"index": index, "score": scores[index]}
        if body.return_text:
            one["text"] = texts[index]
        ranks.append(one)
    return ranks


def _reply(body: RerankRequest, documents: list[str], ranking: Ranking) -> RerankReply:
    results: list[Result] = []
    for index in _best_first(ranking.scores)[: body.top_n]:
        result: Result = {"index": index, "relevance_score": ranking.scores[index]}
        if body.return_documents:
            result["document"] = {"text": documents[index]}
        results.append(result)
    return {
        "id": str(uuid.uuid4()),
        "object": "list",
        "model": ranking.model,
        "results": results,
        "usage": {"prompt_tokens": ranking.n_tokens, "total_tokens": ranking.n_tokens},
        "meta": {"billed_units": {"search_units": 1}},
    }
