"""A lock for computations on the same cores."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class FairLock:
    """A mutual exclusion lock, granted in the order of requests.

    Two thread pools on the same cores delay each other at every barrier, hundreds of times per step. The
    inter-token latency of a stream rose from 10 to 84 ms beside an embedding model. With a lock, each pool
    only waits for the other's computation. threading.Lock is not fair: the releasing thread usually gets it
    again.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._is_taken = False

    @property
    def is_taken(self) -> bool:
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
                self._waiting.popleft().release()  # still taken, by the next thread
            else:
                self._is_taken = False
