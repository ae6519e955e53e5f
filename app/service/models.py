"""The models of a server by name: loaded at start or by a request, and unloaded for another or when idle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from functools import partial
from typing import Any

from app.config.contexts import Context
from app.config.errors import UserError
from app.config.settings import Settings
from app.fit.memory_plan import MemoryPlan, MemoryPlanError
from app.fit.model_shares import shares
from app.machine.background import in_background
from app.machine.memory import available_memory, return_freed_memory
from app.service.errors import GenerationFailed, LoadFailed, ServiceError, UnknownModel
from app.service.facts import facts_of
from app.service.files import ModelFiles, checked_files, readable_load_errors
from app.service.model import Common, Model
from app.service.model_parts import memory_plan
from app.service.slots import Lease, ModelFacts, Slot, State
from app.telemetry.metrics import Metrics
from app.weights.model import ModelError, model_name
from app.weights.served import ServedModel

logger = logging.getLogger("tokenstream.service")

_ANY_TAG = ":latest"  # of Ollama's clients
_CHECK_EVERY = 0.05  # seconds between checks whether a model has ended its work


class Models:
    """The models of a server. Used on the event loop.

    Loads and unloads run one after another, in the order of their requests, because each one plans with the
    memory that the others leave.

    Attributes:
        slots: In the order of MODELS; the first is the default.
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
        self.slots = [
            Slot(one, metrics.models[one.name if len(served) > 1 else ""], one.name) for one in served
        ]
        for slot in self.slots:
            slot.keep = None if slot.served.is_pinned else keep
            if self.are_several and not slot.served.at_start:
                slot.metrics.engine.on_unload()
        self._keep = keep
        self._settings = settings
        self._contexts = contexts
        self._on_failure = on_failure
        self._budget: int | None = None
        self._lock: AbstractContextManager[None] | None = None
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def default(self) -> Slot:
        return self.slots[0]

    @property
    def are_several(self) -> bool:
        return len(self.slots) > 1

    @property
    def n_unfinished(self) -> int:
        """Number of running and waiting requests of all models."""
        return sum(slot.model.engine.n_unfinished for slot in self.slots if slot.model is not None)

    @property
    def states(self) -> dict[str, State]:
        return {slot.name: slot.state for slot in self.slots}

    @property
    def facts(self) -> list[ModelFacts]:
        """Facts of all models. After the start they are complete."""
        return [slot.facts for slot in self.slots if slot.facts is not None]

    # --- names

    def find(self, name: str | None) -> Slot:
        """The model with a name. None: the default. A single model has any name.

        Raises:
            UnknownModel: No model has the name.
        """
        if name is None or not self.are_several:
            return self.default
        known = {slot.name: slot for slot in self.slots}
        slot = known.get(name) or known.get(name.removesuffix(_ANY_TAG))
        if slot is None and (with_adapter := known.get(name.rpartition(":")[0])) and with_adapter.adapters:
            return with_adapter  # ``adapter_of`` checks the adapter
        if slot is None:
            raise UnknownModel(
                f"{name[:100]!r} does not exist; served are: {', '.join(known)}", field="model"
            )
        return slot

    def adapter_of(self, slot: Slot, name: str | None) -> str:
        """The adapter that the name of a model ends with; empty: none.

        Raises:
            UnknownModel: The model has no such adapter.
        """
        if name is None or not slot.adapters or name == slot.name:
            return ""
        model, colon, adapter = name.removesuffix(_ANY_TAG).rpartition(":")
        if adapter in slot.adapters:
            return adapter
        if colon and model == slot.name:
            served = ", ".join(f"{slot.name}:{one}" for one in slot.adapters)
            problem = f"{name[:100]!r} does not exist; served are: {slot.name}, {served}"
            raise UnknownModel(problem, field="model")
        return ""

    def contexts_of(self, slot: Slot, contexts: Mapping[str, Context]) -> dict[str, Context]:
        """The contexts whose requests go to a model, unless they name another one."""
        if not self.are_several:
            return {**contexts}
        return {name: one for name, one in contexts.items() if self.find(one.model) is slot}

    # --- use

    async def acquire(self, slot: Slot) -> Lease:
        """Use a model. It is loaded if it is not, and stays loaded until the lease is released.

        Raises:
            LoadFailed: It cannot be loaded.
        """
        if slot.is_open:
            return Lease(slot)
        granted: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        slot.waiting.append(granted)
        if slot.loading is None or slot.loading.done():
            slot.loading = self._start_task(self._load_for_requests(slot))
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self.release(slot, granted.result())
            raise

    def release(self, slot: Slot, lease: Lease) -> None:
        """End a use."""
        if lease.release() and slot.keep is not None:
            self._expire_later(slot, slot.keep)

    def keep(self, slot: Slot, seconds: float | None) -> None:
        """Set the idle time after which a model is unloaded. None: it stays. Pinned ones always stay."""
        if slot.served.is_pinned:
            return
        slot.keep = seconds
        if slot.timer is not None:
            slot.timer.cancel()
        if seconds is not None and slot.is_open and slot.is_idle:
            self._expire_later(slot, seconds)

    def _expire_later(self, slot: Slot, seconds: float) -> None:
        def expire() -> None:
            slot.timer = None
            self._start_task(self._unload_idle(slot))

        slot.timer = asyncio.get_running_loop().call_later(seconds, expire)

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
        for slot in self.slots[1:]:
            if slot.served.at_start:
                try:
                    with readable_load_errors():
                        await self._load(slot, None, warm)
                except UserError as error:
                    raise ModelError(f"model {slot.name}: {error}") from error

    async def _share_memory(self) -> None:
        """Give each model its share, and plan those whose files are here.

        Raises:
            MemoryPlanError: A model does not fit into its share.
        """
        limit, free = self._settings.models_memory, available_memory()
        self._budget = free if limit is None else min(limit << 20, free)
        sizes = {slot.name: slot.served.n_bytes for slot in self.slots}
        pinned = [slot for slot in self.slots if slot.served.is_pinned]
        given = shares(sizes, [slot.name for slot in pinned], self._budget)
        n_pinned = 0  # bytes of the plans of pinned models
        for slot in sorted(self.slots, key=lambda one: not one.served.is_pinned):
            slot.share = given.get(slot.name, self._budget - n_pinned)
            plan = None
            if slot.served.path is not None:
                plan = await asyncio.to_thread(self._plan, slot, slot.served.path)
            if slot.served.is_pinned:
                n_pinned += slot.share if plan is None else plan.total
            if self.are_several:
                slot.facts = await asyncio.to_thread(facts_of, slot.served, plan)

    def _plan(self, slot: Slot, path: Any) -> MemoryPlan:
        try:
            with readable_load_errors():
                return memory_plan(slot.settings, path, slot.share)
        except MemoryPlanError as error:
            if slot.share is None:
                raise
            limit = self._settings.models_memory
            of = "the free memory" if limit is None else f"MODELS_MEMORY={limit}"
            raise MemoryPlanError(
                f"model {slot.name or model_name(path)}, with its share of {of}: {error}"
            ) from None

    async def _load_for_requests(self, slot: Slot) -> None:
        """Load a model and give it to the requests that wait for it, or tell them why not."""
        try:
            if not slot.is_open:
                await self._load(slot, None, None)
            error: ServiceError | None = None
        except asyncio.CancelledError:
            error = GenerationFailed("the server is shutting down")
        except UserError as reason:
            logger.error("model %s cannot be loaded: %s", slot.name, reason)
            error = LoadFailed(f"{slot.name} cannot be loaded: {reason}", field="model")
        except Exception as reason:
            logger.exception("model %s cannot be loaded", slot.name)
            problem = f"{type(reason).__name__}: {reason}"
            error = LoadFailed(f"{slot.name} cannot be loaded: {problem}", field="model")
        if error is not None:
            slot.failure = str(error)
        while slot.waiting:
            granted = slot.waiting.popleft()
            if granted.done():
                continue
            if error is None:
                granted.set_result(Lease(slot))
            else:
                granted.set_exception(error)
        if slot.is_open and slot.is_idle and slot.keep is not None:
            self._expire_later(slot, slot.keep)

    async def _load(self, slot: Slot, files: ModelFiles | None, warm: Collection[str] | None) -> None:
        async with self._turn:
            if slot.is_open:
                return
            if files is None:
                files = await in_background(partial(checked_files, slot.settings))
            plan = await asyncio.to_thread(self._plan, slot, files.path)
            await self._make_room(slot, plan.total)
            planned = sum(one.n_planned for one in self.slots)
            if planned and (free := available_memory() - planned) < plan.total:
                # Other programs have more memory than at start.
                plan = await asyncio.to_thread(memory_plan, slot.settings, files.path, free)
            slot.name = slot.name or model_name(files.path)
            common = Common(
                self._contexts,
                self._lock,
                partial(self._engine_failed, slot),
                lambda: self.n_unfinished > 0,
                partial(self._stream_elsewhere, slot),
            )
            own = self.contexts_of(slot, self._contexts)
            slot.n_planned = plan.total
            try:
                with readable_load_errors():
                    slot.model = await Model.load(
                        slot.name,
                        files,
                        slot.settings,
                        plan,
                        common,
                        metrics=slot.metrics,
                        warmed=[name for name in own if warm is None or name in warm],
                    )
            except BaseException:
                slot.n_planned = 0
                raise
            slot.failure = None
            slot.keep = None if slot.served.is_pinned else self._keep
            model = slot.model
            slot.facts = ModelFacts(
                slot.name, model.created, model.description, model.n_bytes, model.limits.total
            )

    def _stream_elsewhere(self, slot: Slot) -> bool:
        """Whether answers of other models stream. Called on the thread of a model's engine."""
        others = [one.model for one in self.slots if one is not slot]
        return any(model.engine.is_streaming for model in others if model is not None)

    def _engine_failed(self, slot: Slot, error: BaseException) -> None:
        slot.metrics.engine.on_end()
        of_model = f" of {slot.name}" if self.are_several else ""
        self._on_failure(f"the engine{of_model} failed: {error}")

    # --- unload

    async def _make_room(self, slot: Slot, n_bytes: int) -> None:
        """Unload models until ``n_bytes`` are free: idle ones first, the least recently used first."""
        while self._budget is not None and sum(s.n_planned for s in self.slots) + n_bytes > self._budget:
            open_ = [one for one in self.slots if one.is_open and not one.served.is_pinned]
            if not open_:
                raise MemoryPlanError(
                    f"model {slot.name} needs {n_bytes >> 20} MiB beside the pinned models; "
                    f"MODELS_MEMORY allows {self._budget >> 20} MiB"
                )
            await self._unload(min(open_, key=lambda one: (not one.is_idle, one.used_at)))

    async def _unload_idle(self, slot: Slot) -> None:
        """Unload a model, unless it is used again."""
        async with self._turn:
            if slot.is_open and slot.n_users == 0 and slot.timer is None and slot.keep is not None:
                await self._unload(slot)

    async def _unload(self, slot: Slot) -> None:
        """Let a model end its work, then free it. Its next requests load it again."""
        model = slot.model
        assert model is not None
        slot.is_draining = True
        try:
            while not slot.is_idle:  # noqa: ASYNC110 # engines do not tell when they become idle
                await asyncio.sleep(_CHECK_EVERY)
            slot.model = None
            await _closed(model)
            del model
            await asyncio.to_thread(return_freed_memory)
        finally:
            slot.is_draining = False
        slot.n_planned = 0
        slot.metrics.engine.on_unload()
        logger.info("model %s is unloaded", slot.name)

    async def close(self) -> None:
        """Stop all engines and free the models. One that fails does not keep the others open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with AsyncExitStack() as parts:
            for slot in self.slots:
                if slot.timer is not None:
                    slot.timer.cancel()
                if slot.model is not None:
                    parts.push_async_callback(slot.model.close)
                    slot.model = None

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
