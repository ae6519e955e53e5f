"""States, keys and checks for tests of state files."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

KEY = {"model": "smollm2 é", "kv_type": "f16"}


OTHER_KEY = {**KEY, "kv_type": "q8_0"}


TOKENS = list(range(700))


LARGE = 1 << 30


def random_state(n_bytes: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, n_bytes, np.uint8)


STATE = random_state(100_000)


def is_same(loaded: NDArray[np.uint8] | None, saved: NDArray[np.uint8]) -> bool:
    return loaded is not None and loaded.dtype == np.uint8 and np.array_equal(loaded, saved)


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
