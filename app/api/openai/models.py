"""``GET /v1/models``."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from app.api.dialect import Problem
from app.api.http.problems import ApiError
from app.service import Service


class ModelEntry(TypedDict):
    """A model of this server."""

    id: str
    object: Literal["model"]
    created: Annotated[
        int,
        Field(description="Modification time of its file, in seconds since 1970; 0: not downloaded yet."),
    ]
    owned_by: str
    root: Annotated[str, Field(description="Name of the model, or of the adapter's file.")]
    parent: Annotated[str | None, Field(description="The model that an adapter changes.")]
    max_model_len: Annotated[  # vLLM's name
        int, Field(description="Maximum tokens of prompt plus answer, or of an embedded text.")
    ]


class ModelMetadata(TypedDict):
    """A model as in the API of System One."""

    name: str
    description: str
    release_date: Annotated[str, Field(description="Modification date of its file: YYYY-MM-DD.")]


class ModelList(TypedDict):
    """The models of this server."""

    object: Literal["list"]
    data: list[ModelEntry]
    models: Annotated[list[ModelMetadata], Field(description="The language models, for System One.")]


def _entry(
    name: str, created: int, n_tokens: int, *, root: str | None = None, parent: str | None = None
) -> ModelEntry:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "tokenstream",
        "root": root or name,
        "parent": parent,
        "max_model_len": n_tokens,
    }


def _entries(service: Service) -> list[ModelEntry]:
    """The language models, each with its adapters, then the embedding model."""
    service.check_started()
    entries = []
    for one in service.models.entries:
        if (facts := one.facts) is not None:
            entries.append(_entry(facts.name, facts.created, facts.n_tokens))
            for name, adapter in one.adapters.items():
                created, root = int(adapter.path.stat().st_mtime), adapter.path.name
                identifier = f"{facts.name}:{name}"
                entries.append(_entry(identifier, created, facts.n_tokens, root=root, parent=facts.name))
    if (embedder := service.embedder) is not None:
        entries.append(_entry(embedder.name, embedder.created, embedder.max_tokens))
    return entries


async def models(request: Request) -> Response:
    service: Service = request.app.state.service
    data = _entries(service)
    about: list[ModelMetadata] = [
        {
            "name": one.name,
            "description": one.description,
            "release_date": datetime.fromtimestamp(one.created, timezone.utc).date().isoformat(),
        }
        for one in service.models.facts
    ]
    body: ModelList = {"object": "list", "data": data, "models": about}
    return JSONResponse(body)


async def model(request: Request) -> Response:
    entries = _entries(request.app.state.service)
    name = request.path_params["name"]
    for entry in entries:
        if entry["id"] == name:
            return JSONResponse(entry)
    served = " and ".join(repr(entry["id"]) for entry in entries)
    raise ApiError(Problem(404, "unknown_model", f"model: {name!r} does not exist, only {served}", "model"))
