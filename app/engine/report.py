"""Figures of a step, for metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from app.engine.cache.kv_state import CacheFigures


@dataclass(frozen=True, slots=True)
class StepReport:
    """Work of one step, and requests and cache after it."""

    seconds: float = 0.0
    prompt_tokens: int = 0  # computed
    cached_tokens: int = 0  # of prompts that began in this step, taken from the prefix cache
    generated_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0  # draft tokens that were sampled
    running: int = 0
    waiting: int = 0
    cache: CacheFigures = field(default_factory=CacheFigures)


class Observer(Protocol):
    """Receiver of step reports, on the event loop."""

    def on_step(self, report: StepReport) -> None: ...
