"""CPU name and features, for manifests and cache keys. Probes choose the instruction sets."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def fields() -> dict[str, str]:
    """First processor of /proc/cpuinfo; empty if the file is missing."""
    try:
        block = CPUINFO.read_text(encoding="utf-8", errors="replace").strip().partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def model() -> str:
    """CPU name, such as ``AMD EPYC 9354 32-Core Processor``."""
    found = fields()
    return found.get("model name") or found.get("CPU part") or platform.processor() or platform.machine()


def identity() -> str:
    """CPU name and features; different for each kind of CPU."""
    found = fields()
    parts = (found.get("CPU implementer", ""), found.get("flags") or found.get("Features") or "")
    return " ".join((platform.machine(), model(), *parts))
