"""Pools of threads that are complete from the start."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor


def full_pool(n_threads: int, name: str) -> ThreadPoolExecutor:
    """A pool whose threads have all been started.

    ThreadPoolExecutor starts a thread if no other is idle. The number of threads would grow for hours.
    """
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix=name)
    started = threading.Barrier(n_threads)  # no thread is idle until all have been started
    for _ in range(n_threads):
        pool.submit(started.wait)
    return pool
