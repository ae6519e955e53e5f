"""Figures of a step, for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from app.engine.cache.kv_state import CacheFigures
from app.engine.sequence import Tier


@dataclass(frozen=True, slots=True)
class StepReport:
    """Work of one step, and requests and cache after it."""

    seconds: float = 0.0
    n_sequences: int = 0  # computed; 0: no computation
    n_decoding: int = 0
    n_tokens: int = 0  # computed, with drafts
    prompt_tokens: int = 0  # computed
    queried_tokens: int = 0  # of prompts that began in this step
    cached_tokens: int = 0  # of those, taken from the prefix cache
    hits: Mapping[Tier, int] = field(default_factory=dict)  # the cached tokens by tier
    generated_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0  # draft tokens that were sampled
    running: int = 0
    waiting: int = 0
    running_cells: int = 0  # KV cells of running sequences
    idle_cells: int = 0  # KV cells of finished sequences
    cache: CacheFigures = field(default_factory=CacheFigures)


class Observer(Protocol):
    """Receiver of step reports, on the event loop."""

    def on_step(self, report: StepReport) -> None: ...
