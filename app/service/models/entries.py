"""One model in the list of a server: unloaded, loading, ready."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from app.config.settings import Settings
from app.service.model.model import Model
from app.telemetry.metrics import ModelMetrics
from app.weights.adapters import AdapterFile
from app.weights.served import ServedModel

State = Literal["ready", "loading", "unloading", "unloaded", "failed"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts about a model, loaded or not.

    Attributes:
        name: Its name in requests.
        created: Modification time of its file, in seconds since 1970; 0: not downloaded yet.
        description: Architecture, size and quantization; empty: not downloaded yet.
        n_bytes: Size of the weights.
        n_tokens: Maximum tokens of a request.
    """

    name: str
    created: int
    description: str
    n_bytes: int
    n_tokens: int


@dataclass(eq=False, slots=True)
class Entry:
    """One model of the list. Used on the event loop.

    Attributes:
        served: The model's settings and file.
        metrics: Its metrics.
        name: Its name; empty if it has that of its file, which is not known yet.
        share: Bytes that its memory plan may use; None: what is available.
        facts: Known after the first look at its file.
        model: The model while it is loaded.
        failure: Why it could not be loaded last.
        n_users: Number of leases.
        used_at: End of the last lease, by ``time.monotonic``.
        keep: Seconds without a lease until it is unloaded; None: no limit.
        n_planned: Bytes of its memory plan while it is loaded.
        waiting: Requests that wait until it is loaded.
        loading: The task that loads it.
        timer: Calls the unloading.
        is_draining: Whether it ends its work, to be unloaded.
    """

    served: ServedModel
    metrics: ModelMetrics
    name: str
    share: int | None = None
    facts: ModelFacts | None = None
    model: Model | None = None
    failure: str | None = None
    n_users: int = 0
    used_at: float = field(default_factory=time.monotonic)
    keep: float | None = None
    n_planned: int = 0
    waiting: deque[asyncio.Future[Lease]] = field(default_factory=deque)
    loading: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    is_draining: bool = False

    @property
    def settings(self) -> Settings:
        return self.served.settings

    @property
    def adapters(self) -> Mapping[str, AdapterFile]:
        return self.served.adapters

    @property
    def is_open(self) -> bool:
        """Whether requests can use the model now."""
        return self.model is not None and not self.is_draining

    @property
    def is_idle(self) -> bool:
        """Whether no request uses the model."""
        return self.n_users == 0 and (self.model is None or self.model.engine.n_unfinished == 0)

    @property
    def expires_at(self) -> float | None:
        """When it is unloaded unless it is used, in seconds since 1970. None: it stays."""
        if self.keep is None:
            return None
        return time.time() + self.keep - (0 if self.n_users else time.monotonic() - self.used_at)

    @property
    def state(self) -> State:
        if self.is_draining:
            return "unloading"
        if self.model is not None:
            return "ready"
        if self.loading is not None and not self.loading.done():
            return "loading"
        return "unloaded" if self.failure is None else "failed"


class Lease:
    """The use of a loaded model by one request. The model stays loaded until the release.

    Attributes:
        model: The model.
    """

    def __init__(self, entry: Entry) -> None:
        assert entry.model is not None
        self.model = entry.model
        self._slot = entry
        self._is_released = False
        entry.n_users += 1
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None

    def release(self) -> bool:
        """End the use. Returns whether it was the last one."""
        entry = self._slot
        if self._is_released:
            return False
        self._is_released = True
        entry.n_users -= 1
        entry.used_at = time.monotonic()
        return entry.n_users == 0
