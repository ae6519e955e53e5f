"""Prefills the contexts of a model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from app.chat.template.sandbox import TemplateRejection
from app.config.contexts import Context, ContextsError
from app.config.settings import Settings
from app.engine.async_engine import AsyncEngine
from app.machine.progress import Progress
from app.service.errors import BadRequest
from app.service.preparing.preparation import Preparation

logger = logging.getLogger("tokenstream.service")


async def warm(
    contexts: Mapping[str, Context], preparation: Preparation, engine: AsyncEngine, settings: Settings
) -> dict[str, str]:
    """Check contexts, and prefill their common prefixes if the prefix cache is on.

    Returns:
        The contexts that the model rejects, with the reasons: the chat template rejects them, or they exceed
        the input limit.

    Raises:
        ContextsError: The constraint or a choice of a context is invalid.
    """
    started = time.perf_counter()
    is_cached = settings.prefix_cache_mb != 0
    n_tokens = n_computed = 0
    refused: dict[str, str] = {}
    progress = Progress(logger, "prefilling contexts")
    for n_done, (name, context) in enumerate(contexts.items()):
        progress.report(n_done / len(contexts))
        place = f"{settings.contexts_file}: context {name!r}"
        try:
            preparation.check(context)
            prefix = await asyncio.to_thread(preparation.common_prefix, context)
        except BadRequest as error:
            raise ContextsError(f"{place}: {error}") from error
        except TemplateRejection as error:
            refused[name] = (
                f"the chat template rejects it ({error}); change its prompt or examples, or set another "
                "template (TOKENIZER_REPO, TGICHAT_*)"
            )
            continue
        if len(prefix) >= preparation.limits.input:
            refused[name] = (
                f"it has {len(prefix)} tokens, too many for a prompt of at most {preparation.limits.input}; "
                "shorten it, or raise N_CTX or MAX_INPUT_LENGTH"
            )
            continue
        if prefix and is_cached:
            n_tokens += len(prefix)
            n_computed += await engine.warm(prefix, context.adapter or "")
    if not is_cached:
        logger.info("contexts are not prefilled at start: PREFIX_CACHE_MB=0")
        return refused
    logger.info(
        "%d contexts of %d tokens are warm after %.1f s: %d prefilled, the others loaded",
        len(contexts) - len(refused),
        n_tokens,
        time.perf_counter() - started,
        n_computed,
    )
    return refused
