"""How much memory this process may have."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def machine_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may have, what it has already included.

    It is what the machine has free or can free at once (MemAvailable), or what the limits of the
    process's cgroup and of those above it leave, where that is less. What other programs hold is not
    counted on: if it were, the plan would end with the kernel killing this server, or them, in the middle
    of an answer. Page cache counts as free, as the weights are read into it. Swap does not count: a decode
    step walks over all weights and KV memory.

    Args:
        proc: Where the proc file system is.
        cgroup: Where the cgroup file systems are, of version 2, version 1 or both.
    """
    meminfo = _table(proc / "meminfo")
    if "MemAvailable" not in meminfo:
        return machine_memory()
    room = [meminfo["MemAvailable"] * 1024]
    for folder in _cgroup_folders(proc, cgroup):
        room += _cgroup_room(folder)
    ours = _table(proc / "self/status").get("RssAnon", 0) * 1024
    return max(0, min(room)) + ours


def _cgroup_folders(proc: Path, cgroup: Path) -> Iterator[Path]:
    """The folders of the cgroups whose memory limits hold for this process, its own first."""
    for line in _read(proc / "self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root = cgroup
        elif "memory" in controllers.split(","):
            root = cgroup / "memory"
        else:
            continue
        # Within a container the path may be one of the host's, which is not there: its root is ours then.
        parts = PurePosixPath(path).parts[1:]
        for depth in range(len(parts), -1, -1):
            yield root.joinpath(*parts[:depth])


def _cgroup_room(folder: Path) -> Iterator[int]:
    """What the limits of one cgroup leave; nothing where it sets none or is not there."""
    # Version 2, then version 1. The files that it has read count as used, but can be freed.
    for limits, usage, prefix in (
        (("memory.max", "memory.high"), "memory.current", ""),
        (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_"),
    ):
        used = _read(folder / usage)
        statistics = _table(folder / "memory.stat")
        cached = sum(statistics.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
        for limit in (_read(folder / name) for name in limits):
            if limit.isdecimal() and used.isdecimal():  # not "max"
                yield int(limit) - max(0, int(used) - cached)


def _table(path: Path) -> dict[str, int]:
    """The figures of a file with a name and a number in each line."""
    return {name: int(figure) for name, figure in re.findall(r"^(\w+):?\s+(\d+)", _read(path), re.MULTILINE)}


def _read(path: Path) -> str:
    """The text of a file of the kernel; empty where there is none or it may not be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""  # another system, another version: no limit is known
