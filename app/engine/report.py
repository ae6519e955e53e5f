"""What the engine tells of its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from app.engine.cache.prefix_cache import CacheFigures


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did, for metrics. Seconds, tokens, sequences."""

    seconds: float = 0.0
    prompt_tokens: int = 0  # prefilled
    cached_tokens: int = 0  # of prompts, taken over from the prefix cache
    generated_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0  # of the draft
    running: int = 0
    waiting: int = 0
    cache: CacheFigures = field(default_factory=CacheFigures)


class Observer(Protocol):
    """Is told of every step, on the event loop."""

    def on_step(self, report: StepReport) -> None:
        """Take one step's report."""
