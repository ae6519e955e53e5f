"""CPU cores that this process may use."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

_SYS = Path("/sys")
_CGROUP = Path("/sys/fs/cgroup")


def physical_cores() -> int:
    """Physical cores that this process may use; at most the CPU quota of its cgroup, at least 1."""
    cores, quota = count_cores(usable_cpus()), cpu_quota()
    return max(1, min(cores, int(quota))) if quota else max(1, cores)


def usable_cpus() -> frozenset[int]:
    """Logical CPUs of this process's affinity."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def count_cores(cpus: Collection[int], sys: Path = _SYS) -> int:
    """Physical cores of logical CPUs."""
    siblings: set[str] = set()
    for cpu in cpus:
        path = sys / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        siblings.add(path.read_text().strip() if path.exists() else str(cpu))
    return len(siblings)


def cpu_quota(cgroup: Path = _CGROUP) -> float | None:
    """CPU quota of the cgroup (v2, then v1) in CPUs; None without a limit."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
            return None if quota == "max" else int(quota) / int(period)
        v1_quota = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        return v1_quota / int((cgroup / "cpu/cpu.cfs_period_us").read_text()) if v1_quota > 0 else None
    except (OSError, ValueError):
        return None  # no cgroup file system, or an unknown format: assume no limit
