"""Engines with the default model."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator

import pytest

from app.engine.async_engine import AsyncEngine
from app.engine.engine import EngineOptions
from app.engine.llama import Model
from app.engine.report import StepReport


class Reports:
    """An observer that keeps all reports."""

    def __init__(self) -> None:
        self.all: list[StepReport] = []

    def on_step(self, report: StepReport) -> None:
        self.all.append(report)

    @property
    def prompt_tokens(self) -> int:
        return sum(r.prompt_tokens for r in self.all)

    @property
    def cached_tokens(self) -> int:
        return sum(r.cached_tokens for r in self.all)

    @property
    def generated_tokens(self) -> int:
        return sum(r.generated_tokens for r in self.all)


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def compute_lock() -> threading.Lock:
    """While a test holds it, the engine cannot begin a step."""
    return threading.Lock()


@pytest.fixture
async def engine(model: Model, reports: Reports, compute_lock: threading.Lock) -> AsyncIterator[AsyncEngine]:
    """An engine with four sequences of 512 tokens and a queue of eight requests."""
    options = EngineOptions(n_ctx=2048, max_sequences=4, n_threads=1)
    engine = AsyncEngine(model, options, reports, compute_lock)
    engine.start()
    yield engine
    await engine.close()
