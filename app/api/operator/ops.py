"""Routes for operators and for the page: health, readiness, metrics, what contexts there are."""

from __future__ import annotations

from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.service import Service


async def health(request: Request) -> Response:
    """200 unless the engine failed."""
    failure = request.app.state.service.failure
    return JSONResponse({"status": "ok"}) if failure is None else _failed(failure)


async def ready(request: Request) -> Response:
    """200 once the model is loaded; 503 before, and after a failure of the engine."""
    service: Service = request.app.state.service
    if service.is_ready:
        return JSONResponse({"status": "ready"})
    if service.failure is not None:
        return _failed(service.failure)
    return JSONResponse({"status": "loading"}, 503, headers={"Retry-After": "2"})


def _failed(reason: str) -> Response:
    return JSONResponse({"status": "failed", "reason": reason}, 503, headers={"Retry-After": "2"})


async def metrics(request: Request) -> Response:
    """Answer what Prometheus scrapes."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    registry = request.app.state.service.metrics.registry
    return Response(encode(registry), headers={"Content-Type": content_type})


async def contexts(request: Request) -> Response:
    """Answer the contexts by name, the default one, the model, and whether there is a knowledge base."""
    service: Service = request.app.state.service
    has_knowledge = service.settings.knowledge == "on"
    drawing = [name for name, context in service.contexts.items() if context.knowledge]
    return JSONResponse(
        {
            "default": service.settings.context_type,
            "contexts": list(service.contexts),
            "model": service.model_name,
            "knowledge": has_knowledge,
            "with_documents": drawing if has_knowledge else [],
            "refused": dict(service.refused_contexts),
        }
    )
