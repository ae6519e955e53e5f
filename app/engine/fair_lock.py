"""Who computes: one at a time, in the order they came."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class FairLock:
    """A lock that whoever waits longest gets next.

    Two pools of threads on the same cores wait for each other at every barrier, some hundred times a step: a
    stream of 10 ms a token took 84 beside an embedding model. In turns both lose only the other's time.
    threading.Lock would not do: who has just given it back gets it again before another wakes up.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._is_taken = False

    @property
    def is_taken(self) -> bool:
        """Whether somebody computes."""
        return self._is_taken

    def __enter__(self) -> None:
        with self._guard:
            if not self._is_taken:
                self._is_taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        gate.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()  # it stays taken, by the next
            else:
                self._is_taken = False
