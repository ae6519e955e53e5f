"""Routes for operators: health, readiness, metrics, contexts."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.http.auth import client_of
from app.api.operator.replies import Contexts, Failed, Health, Loading, Ready
from app.service import Service, allows_context, allows_uploads
from app.telemetry.exposition import encoded

_SMALL = 500_000_000  # bytes of weights: smaller models often give wrong facts and sums
_RETRY_AFTER = {"Retry-After": "2"}


async def health(request: Request) -> Response:
    """Respond 200 unless the engine or the embedding model failed."""
    service: Service = request.app.state.service
    if service.failure is not None:
        return _failed(service.failure)
    body: Health = {"status": "ok"}
    return JSONResponse(body)


async def ready(request: Request) -> Response:
    """Respond 200 once the model is loaded; 503 before, and after a failure."""
    service: Service = request.app.state.service
    if service.is_ready:
        body: Ready = {"status": "ready"}
        if service.models.are_several:
            body["models"] = dict(service.models.states)
        if service.contexts.problem is not None:
            body["contexts_problem"] = service.contexts.problem
        if refused := dict(service.refused_contexts):
            body["contexts_refused"] = refused
        return JSONResponse(body)
    if service.failure is not None:
        return _failed(service.failure)
    stage = service.stage
    loading: Loading = {
        "status": "loading",
        "stage": stage.name,
        "progress": None if stage.done is None else round(stage.done, 3),
    }
    return JSONResponse(loading, 503, headers=_RETRY_AFTER)


def _failed(reason: str) -> Response:
    body: Failed = {"status": "failed", "reason": reason}
    return JSONResponse(body, 503, headers=_RETRY_AFTER)


async def metrics(request: Request) -> Response:
    """Respond with the metrics, in the format of the Accept header."""
    registry = request.app.state.service.metrics.registry
    content, content_type = encoded(registry, request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": content_type})


async def contexts(request: Request) -> Response:
    """List the contexts."""
    service: Service = request.app.state.service
    has_knowledge = service.settings.knowledge == "on"
    client, model, facts = client_of(request), service.models.default.model, service.models.default.facts
    with_documents = [name for name, context in service.contexts.items() if context.knowledge]
    body: Contexts = {
        "default": service.settings.context_type,
        "contexts": list(service.contexts),
        "model": service.model_name,
        "knowledge": has_knowledge,
        "uploads": has_knowledge and service.settings.knowledge_uploads == "on" and allows_uploads(client),
        "with_documents": with_documents if has_knowledge else [],
        "prompts": {
            name: context.prompt for name, context in service.contexts.items() if allows_context(client, name)
        },
        "is_small": facts is not None and facts.n_bytes < _SMALL,
        "stats": service.settings.prometheus_http_address is None,
        "max_total_tokens": facts.n_tokens if service.is_ready and facts is not None else 0,
        "thinks": model is not None and model.tokenizer.template.thoughts.marks is not None,
        "refused": dict(service.refused_contexts),
        "problem": service.contexts.problem,
    }
    return JSONResponse(body)
