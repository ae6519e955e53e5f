"""The models of a server by name: loaded at start or by a request, and unloaded for another or when idle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from app.config.contexts import Context
from app.config.errors import UserError
from app.config.settings import Settings
from app.fit.memory_plan import MemoryPlan, MemoryPlanError
from app.machine.background import in_background
from app.machine.memory import available_memory, return_freed_memory
from app.service.errors import GenerationFailed, LoadFailed, ServiceError
from app.service.model.files import ModelFiles, checked_files, readable_load_errors
from app.service.model.model import Common, Model
from app.service.model.parts import memory_plan
from app.service.models.entries import Entry, Lease, ModelFacts, State
from app.service.models.facts import facts_of
from app.service.models.memory_shares import memory_budget, plan_in_share, planned_shares
from app.service.models.names import find
from app.telemetry.metrics import Metrics
from app.weights.model import ModelError, model_name
from app.weights.served import ServedModel

logger = logging.getLogger("tokenstream.service")

_CHECK_EVERY = 0.05  # seconds between checks whether a model has ended its work


class Models:
    """The models of a server. Used on the event loop.

    Loads and unloads run one after another, in the order of their requests, because each one plans with the
    memory that the others leave.

    Attributes:
        entries: In the order of MODELS; the first is the default.
    """

    def __init__(
        self,
        served: Sequence[ServedModel],
        settings: Settings,
        contexts: Mapping[str, Context],
        metrics: Metrics,
        on_failure: Callable[[str], None],
    ) -> None:
        """``on_failure``: called with the error message of an engine whose thread failed."""
        keep = settings.idle_unload
        self.entries = [
            Entry(one, metrics.models[one.name if len(served) > 1 else ""], one.name) for one in served
        ]
        for entry in self.entries:
            entry.keep = None if entry.served.is_pinned else keep
            if self.are_several and not entry.served.at_start:
                entry.metrics.engine.on_unload()
        self._keep = keep
        self._settings = settings
        self._contexts = contexts
        self._on_failure = on_failure
        self._budget: int | None = None
        self._lock: AbstractContextManager[None] | None = None
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def default(self) -> Entry:
        return self.entries[0]

    @property
    def are_several(self) -> bool:
        return len(self.entries) > 1

    @property
    def n_unfinished(self) -> int:
        """Number of running and waiting requests of all models."""
        return sum(entry.model.engine.n_unfinished for entry in self.entries if entry.model is not None)

    @property
    def states(self) -> dict[str, State]:
        return {entry.name: entry.state for entry in self.entries}

    @property
    def facts(self) -> list[ModelFacts]:
        """Facts of all models. After the start they are complete."""
        return [entry.facts for entry in self.entries if entry.facts is not None]

    # --- names

    def find(self, name: str | None) -> Entry:
        """The model with a name; see ``names.find``."""
        return find(self.entries, name)

    def contexts_of(self, entry: Entry, contexts: Mapping[str, Context]) -> dict[str, Context]:
        """The contexts whose requests go to a model, unless they name another one."""
        if not self.are_several:
            return {**contexts}
        return {name: one for name, one in contexts.items() if self.find(one.model) is entry}

    # --- use

    async def acquire(self, entry: Entry) -> Lease:
        """Use a model. It is loaded if it is not, and stays loaded until the lease is released.

        Raises:
            LoadFailed: It cannot be loaded.
        """
        if entry.is_open:
            return Lease(entry)
        granted: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        entry.waiting.append(granted)
        if entry.loading is None or entry.loading.done():
            entry.loading = self._start_task(self._load_for_requests(entry))
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self.release(entry, granted.result())
            raise

    def release(self, entry: Entry, lease: Lease) -> None:
        """End a use."""
        if lease.release() and entry.keep is not None:
            self._expire_later(entry, entry.keep)

    def keep(self, entry: Entry, seconds: float | None) -> None:
        """Set the idle time after which a model is unloaded. None: it stays. Pinned ones always stay."""
        if entry.served.is_pinned:
            return
        entry.keep = seconds
        if entry.timer is not None:
            entry.timer.cancel()
        if seconds is not None and entry.is_open and entry.is_idle:
            self._expire_later(entry, seconds)

    def _expire_later(self, entry: Entry, seconds: float) -> None:
        def expire() -> None:
            entry.timer = None
            self._start_task(self._unload_idle(entry))

        entry.timer = asyncio.get_running_loop().call_later(seconds, expire)

    # --- load

    async def start(
        self,
        files: ModelFiles,
        *,
        lock: AbstractContextManager[None] | None,
        warm: Collection[str] | None = None,
    ) -> None:
        """Load the models that are loaded at start.

        Args:
            files: Files of the default model.
            lock: Held during each step of an engine.
            warm: Names of the contexts to prefill; None: all.

        Raises:
            UserError: A model cannot be loaded, or does not fit into its share of the memory.
            ModelLoadError: llama.cpp rejects the default model.
        """
        self._lock = lock
        if self.are_several or self._settings.models_memory is not None:
            await self._share_memory()
        await self._load(self.default, files, warm)
        for entry in self.entries[1:]:
            if entry.served.at_start:
                try:
                    with readable_load_errors():
                        await self._load(entry, None, warm)
                except UserError as error:
                    raise ModelError(f"model {entry.name}: {error}") from error

    async def _share_memory(self) -> None:
        """Give each model its share, and plan those whose files are here.

        Raises:
            UserError: A model does not fit into its share, or llama.cpp rejects it.
        """
        budget = self._budget = memory_budget(self._settings)
        served = [entry.served for entry in self.entries]
        planned = await asyncio.to_thread(lambda: [*planned_shares(served, self._settings, budget)])
        for share in planned:
            if share.problem is not None:
                raise share.problem
            entry = next(one for one in self.entries if one.served is share.served)
            entry.share = share.n_bytes
            if self.are_several:
                entry.facts = await asyncio.to_thread(facts_of, entry.served, share.plan)

    def _plan(self, entry: Entry, path: Path) -> MemoryPlan:
        return plan_in_share(entry.served, path, entry.share, self._settings)

    async def _load_for_requests(self, entry: Entry) -> None:
        """Load a model and give it to the requests that wait for it, or tell them why not."""
        try:
            if not entry.is_open:
                await self._load(entry, None, None)
            error: ServiceError | None = None
        except asyncio.CancelledError:
            error = GenerationFailed("the server is shutting down")
        except UserError as reason:
            logger.error("model %s cannot be loaded: %s", entry.name, reason)
            error = LoadFailed(f"{entry.name} cannot be loaded: {reason}", field="model")
        except Exception as reason:
            logger.exception("model %s cannot be loaded", entry.name)
            problem = f"{type(reason).__name__}: {reason}"
            error = LoadFailed(f"{entry.name} cannot be loaded: {problem}", field="model")
        if error is not None:
            entry.failure = str(error)
        while entry.waiting:
            granted = entry.waiting.popleft()
            if granted.done():
                continue
            if error is None:
                granted.set_result(Lease(entry))
            else:
                granted.set_exception(error)
        if entry.is_open and entry.is_idle and entry.keep is not None:
            self._expire_later(entry, entry.keep)

    async def _load(self, entry: Entry, files: ModelFiles | None, warm: Collection[str] | None) -> None:
        async with self._turn:
            if entry.is_open:
                return
            if files is None:
                files = await in_background(partial(checked_files, entry.settings))
            plan = await asyncio.to_thread(self._plan, entry, files.path)
            await self._make_room(entry, plan.total)
            planned = sum(one.n_planned for one in self.entries)
            if planned and (free := available_memory() - planned) < plan.total:
                # Other programs have more memory than at start.
                plan = await asyncio.to_thread(memory_plan, entry.settings, files.path, free)
            entry.name = entry.name or model_name(files.path)
            common = Common(
                self._contexts,
                self._lock,
                partial(self._engine_failed, entry),
                lambda: self.n_unfinished > 0,
                partial(self._stream_elsewhere, entry),
            )
            own = self.contexts_of(entry, self._contexts)
            entry.n_planned = plan.total
            try:
                with readable_load_errors():
                    model = await Model.load(
                        entry.name,
                        files,
                        entry.settings,
                        plan,
                        common,
                        metrics=entry.metrics,
                        warmed={name: one for name, one in own.items() if warm is None or name in warm},
                    )
                await self._warm_changed(entry, model, own)
                entry.model = model
            except BaseException:
                entry.n_planned = 0
                raise
            entry.failure = None
            entry.facts = ModelFacts(
                entry.name, model.created, model.description, model.n_bytes, model.limits.total
            )

    async def _warm_changed(self, entry: Entry, model: Model, known: Mapping[str, Context]) -> None:
        """Prefill the contexts that were read again while a model was loaded; ``known``: the ones before."""
        try:
            while (own := self.contexts_of(entry, self._contexts)) != known:
                await model.warm({name: one for name, one in own.items() if known.get(name) != one})
                known = own
        except BaseException:
            await _closed(model)
            raise

    def _stream_elsewhere(self, entry: Entry) -> bool:
        """Whether answers of other models stream. Called on the thread of a model's engine."""
        others = [one.model for one in self.entries if one is not entry]
        return any(model.engine.is_streaming for model in others if model is not None)

    def _engine_failed(self, entry: Entry, error: BaseException) -> None:
        entry.metrics.engine.on_end()
        of_model = f" of {entry.name}" if self.are_several else ""
        self._on_failure(f"the engine{of_model} failed: {error}")

    # --- unload

    async def _make_room(self, entry: Entry, n_bytes: int) -> None:
        """Unload models until ``n_bytes`` are free: idle ones first, the least recently used first."""
        while self._budget is not None and sum(s.n_planned for s in self.entries) + n_bytes > self._budget:
            open_ = [one for one in self.entries if one.is_open and not one.served.is_pinned]
            if not open_:
                raise MemoryPlanError(
                    f"model {entry.name} needs {n_bytes >> 20} MiB beside the pinned models; "
                    f"MODELS_MEMORY allows {self._budget >> 20} MiB"
                )
            await self._unload(min(open_, key=lambda one: (not one.is_idle, one.used_at)))

    async def _unload_idle(self, entry: Entry) -> None:
        """Unload a model, unless it is used again."""
        async with self._turn:
            if entry.is_open and entry.n_users == 0 and entry.timer is None and entry.keep is not None:
                await self._unload(entry)

    async def _unload(self, entry: Entry) -> None:
        """Let a model end its work, then free it. Its next requests load it again."""
        model = entry.model
        assert model is not None
        entry.is_draining = True
        entry.keep = self._keep  # a request that arrives now may set another
        try:
            while not entry.is_idle:  # noqa: ASYNC110 # engines do not tell when they become idle
                await asyncio.sleep(_CHECK_EVERY)
            entry.model = None
            await _closed(model)
            del model
            await asyncio.to_thread(return_freed_memory)
        finally:
            entry.is_draining = False
        entry.n_planned = 0
        entry.metrics.engine.on_unload()
        logger.info("model %s is unloaded", entry.name)

    async def close(self) -> None:
        """Stop all engines and free the models. One that fails does not keep the others open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with AsyncExitStack() as parts:
            for entry in self.entries:
                if entry.timer is not None:
                    entry.timer.cancel()
                if entry.model is not None:
                    parts.push_async_callback(entry.model.close)
                    entry.model = None

    def _start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a model cannot be unloaded", exc_info=error)


async def _closed(model: Model) -> None:
    """Free a model, even if the task is cancelled meanwhile."""
    closing = asyncio.ensure_future(model.close())
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await asyncio.wait([closing])
        raise
