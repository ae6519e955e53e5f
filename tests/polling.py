"""Figures of a server, and waiting for conditions."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import httpx

_MOST = 120  # seconds; only a hang takes as long


def figure(url: str, name: str, headers: dict[str, str] | None = None) -> float:
    """The value of a metric without labels."""
    page = httpx.get(f"{url}/metrics", headers=headers, timeout=60).raise_for_status().text
    found = re.search(rf'^{name}(?:{{instance="[^"]*"}})? (\S+)$', page, re.MULTILINE)
    assert found, f"no metric {name}"
    return float(found[1])


def wait_for(condition: Callable[[], object], interval: float = 0.02) -> None:
    end = time.monotonic() + _MOST
    while not condition():
        assert time.monotonic() < end, "the condition is not met"
        time.sleep(interval)


def wait_until_none_runs(url: str) -> None:
    wait_for(lambda: figure(url, "running_requests") == 0)
