"""The contexts of a running server: prefilled at start, and read again after a change of their file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from app.config.contexts import Context, ContextsError, load_contexts
from app.config.errors import UserError
from app.config.settings import Settings
from app.engine.answer import EngineError
from app.service.errors import BadRequest, UnknownModel
from app.service.model.warming import warm

if TYPE_CHECKING:
    from app.service.model.model import Model
    from app.service.models.models import Models

logger = logging.getLogger("tokenstream.service")


class LiveContexts(Mapping[str, Context]):
    """The contexts by name. All parts of the service share this object, and see a replacement at once.

    Attributes:
        problem: Why the current contents of the file are not in use; None: they are.
    """

    def __init__(self, contexts: Mapping[str, Context]) -> None:
        self._current = contexts
        self.problem: str | None = None

    def __getitem__(self, name: str) -> Context:
        return self._current[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._current)

    def __len__(self) -> int:
        return len(self._current)

    def replace(self, contexts: Mapping[str, Context]) -> None:
        self._current = contexts
        self.problem = None


class ContextsFile:
    """Reads CONTEXTS_FILE again. An invalid file is reported, and the previous contexts remain in use."""

    def __init__(self, settings: Settings, contexts: LiveContexts, models: Models) -> None:
        self._settings = settings
        self._contexts = contexts
        self._models = models
        self._is_started = False
        self._task: asyncio.Task[None] | None = None
        self._is_requested = False

    def reload(self) -> None:
        """Read the file again, after the reading that runs. Before the end of the start: then."""
        self._is_requested = True
        if self._is_started and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._reload())

    def started(self) -> None:
        """Read the file again if that was requested before the end of the start."""
        self._is_started = True
        if self._is_requested:
            self.reload()

    def check_models(self, contexts: Mapping[str, Context]) -> None:
        """Check that the models and adapters of contexts are served.

        Raises:
            ContextsError: One is not.
        """
        for name, context in contexts.items():
            try:
                entry = self._models.find(context.model)
            except UnknownModel as error:
                raise ContextsError(
                    f"{self._settings.contexts_file}: context {name!r}: model: {error} (MODELS)"
                ) from None
            if context.adapter is not None and context.adapter not in entry.adapters:
                allowed = ", ".join(entry.adapters) or "none"
                raise ContextsError(
                    f"{self._settings.contexts_file}: context {name!r}: adapter: {context.adapter!r} does "
                    f"not exist; those of its model: {allowed} (LORA)"
                )

    async def close(self) -> None:
        """End a running reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _reload(self) -> None:
        while self._is_requested:
            self._is_requested = False
            try:
                await self._read()
            except (UserError, EngineError) as error:
                self._contexts.problem = str(error)
                logger.error("the previous contexts stay in use: %s", error)
            except Exception as error:
                self._contexts.problem = f"{type(error).__name__}: {error}"
                logger.exception("the previous contexts stay in use: reading them failed unexpectedly")

    async def _read(self) -> None:
        path, default = self._settings.contexts_file, self._settings.context_type
        contexts = await asyncio.to_thread(load_contexts, path)
        if default not in contexts:
            raise ContextsError(f"{path}: CONTEXT_TYPE={default} should be one of {', '.join(contexts)}")
        self.check_models(contexts)
        changed = {name: context for name, context in contexts.items() if self._contexts.get(name) != context}
        used = []
        for entry in self._models.entries:
            if entry.is_open:  # others check and prefill their contexts when they are loaded
                lease = await self._models.acquire(entry)
                try:
                    await self._use(lease.model, self._models.contexts_of(entry, changed))
                finally:
                    self._models.release(entry, lease)
                used.append(lease.model)
        removed = [name for name in self._contexts if name not in contexts]
        self._contexts.replace(contexts)
        for model in (entry.model for entry in self._models.entries if entry.model is not None):
            for name in (*changed, *removed):
                model.refused.pop(name, None)
        for entry in self._models.entries:
            if entry.is_open and entry.model not in used:  # loaded meanwhile, with the previous contexts
                lease = await self._models.acquire(entry)
                try:
                    await lease.model.warm(self._models.contexts_of(entry, changed))
                finally:
                    self._models.release(entry, lease)
        names = f"changed or new: {', '.join(changed) or 'none'}; removed: {', '.join(removed) or 'none'}"
        logger.info("read again: contexts of %s (%s)", path, names)

    async def _use(self, model: Model, changed: Mapping[str, Context]) -> None:
        """Prefill contexts and compile their constraints before they are used.

        So requests of the previous ones go on, and the first request finds its prefix.
        """
        path = self._settings.contexts_file
        refused = await warm(changed, model.preparation, model.engine, self._settings)
        for name, context in changed.items():
            try:
                await asyncio.to_thread(model.preparation.constraints.compile, context)
            except BadRequest as error:
                raise ContextsError(f"{path}: context {name!r}: {error}") from error
        if refused:
            name, reason = next(iter(refused.items()))
            raise ContextsError(f"{path}: context {name!r}: {reason}")
