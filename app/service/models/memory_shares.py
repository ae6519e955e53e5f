"""Memory plans of several models, each within its share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.config.errors import UserError
from app.config.settings import Settings
from app.fit.memory_plan import MemoryPlan, MemoryPlanError
from app.fit.model_shares import shares
from app.fit.speed import memory_of
from app.machine.memory import available_memory
from app.service.model.files import readable_load_errors
from app.service.model.parts import memory_plan
from app.weights.model import model_name
from app.weights.served import ServedModel


@dataclass(frozen=True, slots=True)
class Share:
    """The memory of one model.

    Attributes:
        served: The model.
        n_bytes: Bytes that its plan may use.
        plan: Its plan; None if its file is not here, or cannot be planned.
        problem: Why it cannot be planned.
    """

    served: ServedModel
    n_bytes: int
    plan: MemoryPlan | None
    problem: UserError | None

    @property
    def expected(self) -> int:
        """Bytes that the model needs: of its plan, else the least need of its size."""
        return round(memory_of(self.served.n_bytes)) if self.plan is None else self.plan.total


def memory_budget(settings: Settings) -> int:
    """Bytes of all models that are loaded at the same time."""
    free = available_memory()
    return free if settings.models_memory is None else min(settings.models_memory << 20, free)


def planned_shares(models: Sequence[ServedModel], settings: Settings, budget: int) -> Iterator[Share]:
    """Plan the memory of each model; blocking. Pinned models are first, because the others use the rest."""
    pinned = [model.name for model in models if model.is_pinned]
    given = shares({model.name: model.n_bytes for model in models}, pinned, budget)
    n_pinned = 0  # bytes of the plans of pinned models
    for model in sorted(models, key=lambda one: not one.is_pinned):
        n_bytes = given.get(model.name, budget - n_pinned)
        plan, problem = None, None
        if model.path is not None:
            try:
                plan = plan_in_share(model, model.path, n_bytes, settings)
            except UserError as error:
                problem = error
        if model.is_pinned:
            n_pinned += n_bytes if plan is None else plan.total
        yield Share(model, n_bytes, plan, problem)


def plan_in_share(model: ServedModel, path: Path, share: int | None, settings: Settings) -> MemoryPlan:
    """Plan the memory of a model; blocking.

    Args:
        model: The model.
        path: Its file; for a split model, the first part.
        share: Bytes that it may use. None: what this process may use.
        settings: The settings of the server.

    Raises:
        UserError: It does not fit, or llama.cpp rejects it.
    """
    try:
        with readable_load_errors():
            return memory_plan(model.settings, path, share)
    except MemoryPlanError as error:
        if share is None:
            raise
        limit = settings.models_memory
        of = "the free memory" if limit is None else f"MODELS_MEMORY={limit}"
        name = model.name or model_name(path)
        raise MemoryPlanError(f"model {name}, with its share of {of}: {error}") from None
