"""The latest requests, for the page /stats: the fields of their log lines, without texts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any

MOST = 20
_TEXTS = frozenset({"prompt", "answer"})
_LONGEST = 200  # characters: a client's model name may have any length


class LatestRequests:
    """The last requests that ended. Written and read on the event loop.

    Attributes:
        count: Number of all requests that were added.
    """

    def __init__(self) -> None:
        self.count = 0
        self._requests: deque[dict[str, Any]] = deque(maxlen=MOST)

    def add(self, fields: Mapping[str, Any]) -> None:
        """Add a request at its end, with the fields of its log line."""
        kept = {name: _shortened(value) for name, value in fields.items() if name not in _TEXTS}
        self._requests.append({"ended_at": round(time.time(), 3), **kept})
        self.count += 1

    def since(self, count: int) -> list[dict[str, Any]]:
        """The requests that were added after ``count`` was read, at most MOST; the newest is last."""
        n_new = min(self.count - count, len(self._requests))
        return list(islice(self._requests, len(self._requests) - n_new, None))


def _shortened(value: Any) -> Any:
    return value[:_LONGEST] if isinstance(value, str) else value
