"""Log lines about the progress of long operations."""

from __future__ import annotations

import logging
import time

EVERY = 5.0  # seconds between two lines; shorter operations log none


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
        now = time.monotonic()
        if now - self._logged_at < EVERY or not self._begin < done < 1:
            return
        self._logged_at = now
        left = (now - self._started_at) * (1 - done) / (done - self._begin)
        self._logger.info("%s: %d %%, about %.0f s left", self._operation, done * 100, left)
