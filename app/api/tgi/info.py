"""``GET /info``: what answers here, and its limits."""

from __future__ import annotations

from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app import __version__
from app.api.openai.requests import MOST_CHOICES
from app.api.tgi.requests import Info
from app.service import Service


async def info(request: Request) -> Response:
    """Describe the model and the limits of a request."""
    service: Service = request.app.state.service
    model, settings = service.model, service.settings
    limits = model.limits
    described = Info(
        model_id=settings.model_repo or model.name,
        model_sha=None,
        model_dtype=model.description,
        model_device_type="cpu" if settings.model_gpu_layers == 0 else "cuda",
        model_pipeline_tag="text-generation",
        max_concurrent_requests=settings.max_concurrent_requests,
        max_best_of=settings.max_best_of,
        max_stop_sequences=settings.max_stop_sequences,
        max_input_length=limits.input,
        max_input_tokens=limits.input,
        max_total_tokens=limits.total,
        max_top_n_tokens=settings.max_top_n_tokens,
        max_batch_total_tokens=model.n_ctx,
        max_waiting_tokens=1,
        max_client_batch_size=MOST_CHOICES,
        waiting_served_ratio=0.0,
        validation_workers=2,
        router="tokenstream",
        version=__version__,
        sha=model.fingerprint,
        docker_label=f"llama-cpp-python {version('llama-cpp-python')}",
    )
    return JSONResponse(described.model_dump())
