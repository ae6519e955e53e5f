"""``GET /v1/models``: what answers here."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.problems import ApiError, Problem
from app.service import LoadedModel


def _described(loaded: LoadedModel) -> dict[str, Any]:
    return {
        "id": loaded.name,
        "object": "model",
        "created": loaded.created,
        "owned_by": "tokenstream",
        "max_model_len": loaded.limits.total,  # vLLM's name for the longest request
    }


async def models(request: Request) -> Response:
    """List the models."""
    loaded: LoadedModel = request.app.state.service.loaded
    return JSONResponse({"object": "list", "data": [_described(loaded)]})


async def model(request: Request) -> Response:
    """Describe one."""
    loaded: LoadedModel = request.app.state.service.loaded
    name = request.path_params["name"]
    if name != loaded.name:
        message = f"model: there is no {name!r} here, only {loaded.name!r}"
        raise ApiError(Problem(404, "unknown_model", message, "model"))
    return JSONResponse(_described(loaded))
