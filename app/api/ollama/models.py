"""``/api/tags``, ``/api/ps``, ``/api/show``, ``/api/pull`` and ``/api/version``."""

from __future__ import annotations

import hashlib

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.dialect import NDJSON, Problem
from app.api.http.admission import use_model
from app.api.http.body import read_json
from app.api.http.problems import ApiError
from app.api.ollama.answers import line, rfc3339
from app.api.ollama.replies import (
    OllamaDetails,
    OllamaModelEntry,
    OllamaModelList,
    PullStatus,
    RunningModel,
    RunningModels,
    Shown,
    Version,
)
from app.api.ollama.requests import ModelRequest
from app.service import Embedder, Model, ModelFacts, Service, TextPrompt, UnknownModel

# Clients reject servers below the version that they need.
_API_VERSION = "0.13.5"
_NEVER = "9999-12-31T23:59:59Z"
_ANY_TAG = ":latest"
_HOW_TO_SERVE = "to serve another model, start it with MODEL_PATH, MODEL or MODELS"


async def tags(request: Request) -> Response:
    body: OllamaModelList = {"models": _entries(request.app.state.service)}
    return JSONResponse(body)


async def running(request: Request) -> Response:
    service: Service = request.app.state.service
    known = {one.name: one for one in service.models.entries}
    models: list[RunningModel] = []
    for entry, length in _entries_and_lengths(service):
        held = known.get(entry["name"])
        if held is None or held.model is not None:
            expires = _NEVER if held is None or held.expires_at is None else rfc3339(held.expires_at)
            models.append({**entry, "expires_at": expires, "size_vram": 0, "context_length": length})
    body: RunningModels = {"models": models}
    return JSONResponse(body)


async def version(_request: Request) -> Response:
    body: Version = {"version": _API_VERSION}
    return JSONResponse(body)


async def show(request: Request) -> Response:
    service: Service = request.app.state.service
    service.check_started()
    asked = await read_json(request, ModelRequest)
    entry = _entry_of(service, asked.model)
    if service.embedder is not None and entry["name"] == service.embedder.name:
        return JSONResponse(_shown_embedder(service.embedder, entry))
    model = await use_model(request, TextPrompt(model=entry["name"]))
    return JSONResponse(_shown_model(model, entry))


async def pull(request: Request) -> Response:
    """Models are chosen at start, so only a served one can be pulled."""
    service: Service = request.app.state.service
    service.check_started()
    asked = await read_json(request, ModelRequest)
    entry = _entry_of(service, asked.model)
    done: PullStatus = {"status": "success"}
    if asked.stream is False:
        return JSONResponse(done)
    lines = [done]
    if asked.model.removesuffix(_ANY_TAG) != entry["name"]:
        only = f"{entry['name']} answers under any name: it is the only model of this server"
        lines.insert(0, {"status": f"{only}; {_HOW_TO_SERVE}"})
    return Response(b"".join(map(line, lines)), media_type=NDJSON)


def _entries(service: Service) -> list[OllamaModelEntry]:
    return [entry for entry, _ in _entries_and_lengths(service)]


def _entries_and_lengths(service: Service) -> list[tuple[OllamaModelEntry, int]]:
    """The language models, then the embedding model, each with the maximum tokens of its requests."""
    service.check_started()
    models: list[tuple[ModelFacts | Embedder, int]] = [(one, one.n_tokens) for one in service.models.facts]
    if service.embedder is not None:
        models.append((service.embedder, service.embedder.max_tokens))
    return [(_entry(model), length) for model, length in models]


def _entry(model: ModelFacts | Embedder) -> OllamaModelEntry:
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": rfc3339(model.created),
        "size": model.n_bytes,
        "digest": hashlib.sha256(f"{model.name} {model.created} {model.n_bytes}".encode()).hexdigest(),
        "details": _details(model.description),
    }


def _details(description: str) -> OllamaDetails:
    """Details from llama.cpp's description, such as ``llama 135M Q4_1``."""
    family, size, quantization = [*description.split(" ", 2), "", ""][:3]
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": size,
        "quantization_level": quantization,
    }


def _entry_of(service: Service, name: str) -> OllamaModelEntry:
    """The model that requests with a name use. As for answers, a single language model has any name.

    Raises:
        ApiError: No model has the name.
    """
    entries = _entries(service)
    if name.removesuffix(_ANY_TAG) == service.embedding_name:
        return entries[-1]
    try:
        found = service.models.find(name).name
    except UnknownModel:
        served = " and ".join(repr(entry["name"]) for entry in entries)
        problem = f"model {name!r} not found: this server has {served}; {_HOW_TO_SERVE}"
        raise ApiError(Problem(404, "unknown_model", problem, "model")) from None
    return next(entry for entry in entries if entry["name"] == found)


def _shown_model(model: Model, entry: OllamaModelEntry) -> Shown:
    architecture = entry["details"]["family"]
    shown: Shown = {
        "modelfile": "",
        "parameters": "",
        "template": model.chat_template,
        "details": entry["details"],
        "model_info": {
            "general.architecture": architecture,
            f"{architecture}.context_length": model.limits.total,
        },
        "capabilities": ["completion", "tools"],
        "modified_at": entry["modified_at"],
    }
    if min(model.vocab.fill_in) >= 0:
        shown["capabilities"].append("insert")
    if model.tokenizer.template.thoughts.marks is not None:
        shown["capabilities"].append("thinking")
    return shown


def _shown_embedder(embedder: Embedder, entry: OllamaModelEntry) -> Shown:
    architecture = entry["details"]["family"]
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": entry["details"],
        "model_info": {
            "general.architecture": architecture,
            f"{architecture}.context_length": embedder.max_tokens,
            f"{architecture}.embedding_length": embedder.dimensions,
        },
        "capabilities": ["embedding"],
        "modified_at": entry["modified_at"],
    }
