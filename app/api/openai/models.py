"""``GET /v1/models``: what answers here."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.http.problems import ApiError, Problem
from app.service import Service


def _described(name: str, created: int, n_tokens: int) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "tokenstream",
        "max_model_len": n_tokens,  # vLLM's name for the longest request
    }


def _models(service: Service) -> list[dict[str, Any]]:
    model, embedder = service.model, service.embedder
    there = [_described(model.name, model.created, model.limits.total)]
    if embedder is not None:
        there.append(_described(embedder.name, embedder.created, embedder.max_tokens))
    return there


async def models(request: Request) -> Response:
    """List the models: the one that answers, then the one that makes vectors."""
    return JSONResponse({"object": "list", "data": _models(request.app.state.service)})


async def model(request: Request) -> Response:
    """Describe one."""
    there = _models(request.app.state.service)
    name = request.path_params["name"]
    for one in there:
        if one["id"] == name:
            return JSONResponse(one)
    only = " and ".join(repr(one["id"]) for one in there)
    raise ApiError(Problem(404, "unknown_model", f"model: there is no {name!r} here, only {only}", "model"))
