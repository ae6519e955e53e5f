"""``GET /info``: the model and the limits of requests."""

from __future__ import annotations

from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from app import __version__
from app.api.http.fields import MOST_CHOICES
from app.service import Service


class Info(TypedDict):
    """The model and the limits of requests, with the fields of TGI 0.9 and of TGI 3."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_device_type: str
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_length: int
    max_input_tokens: int
    max_total_tokens: int
    max_top_n_tokens: int
    max_batch_total_tokens: int
    max_waiting_tokens: int
    max_client_batch_size: int
    waiting_served_ratio: float
    validation_workers: int
    router: str
    version: str
    sha: str | None
    docker_label: str | None
    adapters: list[str]  # not in TGI


async def info(request: Request) -> Response:
    service: Service = request.app.state.service
    service.check_started()
    entry = service.models.default
    model, settings = await service.use(entry, None), entry.settings
    body: Info = {
        "model_id": model.name if service.models.are_several else settings.model_repo or model.name,
        "model_sha": None,
        "model_dtype": model.description,
        "model_device_type": "cpu" if settings.model_gpu_layers == 0 else "cuda",
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": settings.max_concurrent_requests,
        "max_best_of": settings.max_best_of,
        "max_stop_sequences": settings.max_stop_sequences,
        "max_input_length": model.limits.input,
        "max_input_tokens": model.limits.input,
        "max_total_tokens": model.limits.total,
        "max_top_n_tokens": settings.max_top_n_tokens,
        "max_batch_total_tokens": model.n_ctx,
        "max_waiting_tokens": 1,
        "max_client_batch_size": MOST_CHOICES,
        "waiting_served_ratio": 0.0,
        "validation_workers": 2,
        "router": "tokenstream",
        "version": __version__,
        "sha": model.fingerprint,
        "docker_label": f"llama-cpp-python {version('llama-cpp-python')}",
        "adapters": [*entry.adapters],
    }
    return JSONResponse(body)
