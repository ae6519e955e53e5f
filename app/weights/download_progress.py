"""Progress of a download: huggingface_hub's bar on a terminal, else log lines."""

from __future__ import annotations

import functools
import logging
import sys
from typing import Any

from app.machine.progress import Progress, report_stage

logger = logging.getLogger("tokenstream.hub")


class ProgressLines:
    """Log lines instead of huggingface_hub's progress bar."""

    def __init__(self, operation: str, *, total: int | None, initial: int, **_: Any) -> None:
        self._n_bytes, self._total = initial, total
        self._progress = Progress(logger, operation, done=initial / total if total else 0.0)

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n_bytes: int) -> None:
        self._n_bytes += n_bytes
        if self._total:
            self._progress.report(self._n_bytes / self._total)


def progress_bar(operation: str) -> Any:
    """huggingface_hub's bar on a terminal, else log lines."""
    if not sys.stderr.isatty():
        return functools.partial(ProgressLines, operation)
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> Any:
            if self.total:
                report_stage(operation, (self.n + (n or 0)) / self.total)
            return super().update(n)

    return Bar
