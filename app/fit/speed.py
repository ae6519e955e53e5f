"""Expected memory and speed of a model on this machine, from its size."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from app.machine.folders import cache_folder
from app.machine.identity import check_key

# Memory of a process with a model, without measurement: repacked weights with KV and prefix cache at their
# smallest, and Python with its packages.
_MEMORY_PER_BYTE = 1.2
_PROCESS = 300_000_000

_BUFFER = 64 << 20  # bytes per thread; more than the caches of most CPUs
_ROUNDS = 8


def memory_of(n_bytes: float) -> float:
    """Least memory to serve a file of ``n_bytes``: 1.2 times its size plus 0.3 GB."""
    return n_bytes * _MEMORY_PER_BYTE + _PROCESS


def expected_speed(n_bytes: float, bandwidth: float) -> float:
    """Upper bound of tokens per second of one stream: each token reads all weights once."""
    return bandwidth / n_bytes


def memory_bandwidth(n_threads: int) -> float:
    """Bytes per second that ``n_threads`` threads read from memory: the best of some measurements.

    They take about 0.1 s. Other programs that run at the same time lower the result.
    """
    buffers = [np.ones(_BUFFER // 8, np.int64) for _ in range(n_threads)]
    with ThreadPoolExecutor(n_threads) as threads:

        def seconds() -> float:
            started = time.perf_counter()
            list(threads.map(np.max, buffers))  # vectorized, and without the GIL
            return time.perf_counter() - started

        return n_threads * _BUFFER / min(seconds() for _ in range(_ROUNDS))


# --- measured speeds


def record_speed(path: Path, n_threads: int, tokens_per_second: float) -> None:
    """Keep the measured decode speed of one stream for `recorded_speed`.

    Raises:
        OSError: The cache folder is not writable.
    """
    place = _place(path, n_threads)
    place.parent.mkdir(parents=True, exist_ok=True)
    written = place.with_suffix(f".{threading.get_ident()}")
    written.write_text(json.dumps({"model": path.name, "tokens_per_second": tokens_per_second}))
    written.replace(place)


def recorded_speed(path: Path, n_threads: int) -> float | None:
    """Measured tokens per second of one stream with this file, library, CPU and threads; None: none."""
    try:
        return float(json.loads(_place(path, n_threads).read_text())["tokens_per_second"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not measured, or written by another version


def _place(path: Path, n_threads: int) -> Path:
    conditions = f"{check_key(path.resolve(), 0, 0, True)} {n_threads}"
    return cache_folder() / "speeds" / f"{hashlib.sha256(conditions.encode()).hexdigest()}.json"
