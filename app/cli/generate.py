"""``python -m app generate``: one answer on the terminal, without a server."""

from __future__ import annotations

import sys
from typing import Any

from app.api.tokenstream.token_stream import TokenStreamRequest
from app.config.contexts import load_contexts
from app.config.settings import Settings
from app.fit import preflight
from app.machine.cores import physical_cores
from app.service import Service, retrieval
from app.telemetry.metrics import Metrics
from app.weights.embedding import resolve_embedding_model
from app.weights.model import resolve_model
from app.weights.tokenizer import load_tokenizer_repo


async def generate(settings: Settings, request: TokenStreamRequest) -> None:
    """Stream the answer to standard output, and its speed to standard error.

    Raises:
        The exceptions of ``server.serve`` and ServiceError.
    """
    retrieval.check(settings)
    service = Service(settings, load_contexts(settings.contexts_file), Metrics(settings.instance_label))
    model = resolve_model(settings)
    embedding_model = resolve_embedding_model(settings) if settings.embeds else None
    tokenizer_repo = load_tokenizer_repo(settings)
    threads = settings.model_threads or physical_cores()
    preflight.check(model, n_threads=threads, n_gpu_layers=settings.model_gpu_layers)
    try:
        context = request.context or settings.context_type
        await service.load(model, tokenizer_repo, embedding_model, warm={context} & service.contexts.keys())
        [generation] = await service.generate(request.prompt(), request.overrides())
        try:
            async for step in generation:
                sys.stdout.write(step.text)
                sys.stdout.flush()
        finally:
            generation.close()
        sys.stdout.write("\n")
        print(
            f"{generation.n_generated} tokens at {generation.tokens_per_second:.1f} tokens per second, "
            f"the first after {generation.time_to_first_token:.2f} s ({generation.n_prompt} prompt tokens)",
            file=sys.stderr,
        )
    finally:
        await service.close()


def request_of(fields: dict[str, Any]) -> TokenStreamRequest:
    """The request that the command line's arguments make; those not given are None.

    Raises:
        ValidationError: A value is out of range.
    """
    return TokenStreamRequest.model_validate({k: v for k, v in fields.items() if v is not None})
