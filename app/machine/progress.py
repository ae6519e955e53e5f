"""Progress of long operations: log lines, and the current stage for a listener."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

EVERY = 5.0  # seconds between two lines; shorter operations log none


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the start: its name, and its completed share from 0 to 1, if that is known."""

    name: str
    done: float | None = None


_listener: ContextVar[Callable[[Stage], None] | None] = ContextVar("stage listener", default=None)


@contextmanager
def reported_to(listener: Callable[[Stage], None]) -> Iterator[None]:
    """Call ``listener`` with the stages of the block, on the threads that run them."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report_stage(name: str, done: float | None = None) -> None:
    """Report the current stage, without a log line."""
    if (listener := _listener.get()) is not None:
        listener(Stage(name, done))


class Progress:
    """Logs the completed share of an operation and its remaining time, every few seconds."""

    def __init__(self, logger: logging.Logger, operation: str, *, done: float = 0.0) -> None:
        """``operation``: begin of each line; ``done``: share that is complete at the start."""
        self._logger = logger
        self._operation = operation
        self._begin = done
        self._started_at = self._logged_at = time.monotonic()

    def report(self, done: float) -> None:
        """Record the completed share, from 0 to 1."""
        report_stage(self._operation, done)
        now = time.monotonic()
        if now - self._logged_at < EVERY or not self._begin < done < 1:
            return
        self._logged_at = now
        left = (now - self._started_at) * (1 - done) / (done - self._begin)
        self._logger.info("%s: %d %%, about %.0f s left", self._operation, done * 100, left)
