"""Memory of this machine and of this process."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

_MIN_MAPPED = 1 << 17  # Bytes. Linux limits the mappings of a process to 65,530.


def machine_memory() -> int:
    """Physical memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def returnable_buffer(n_bytes: int) -> NDArray[np.uint8]:
    """A buffer that returns to the operating system as soon as it is freed, if it has 128 KiB or more.

    Long-lived buffers of different sizes fragment the heap, and freed parts stay resident.

    Raises:
        MemoryError: There is no room.
    """
    if n_bytes < _MIN_MAPPED:
        return np.empty(n_bytes, np.uint8)
    try:
        pages = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"a buffer of {n_bytes} bytes does not fit into memory") from error
    return np.frombuffer(pages, np.uint8)


def return_freed_memory() -> None:
    """Return freed memory to the operating system. It stalls all Python threads for some 50 ms.

    Objects in reference cycles, such as a vocabulary with its grammars, live until a garbage collection. The
    heap of the C library keeps freed blocks, unless it is told to return them (glibc).
    """
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that this process may use, in bytes, including its current use.

    The minimum of MemAvailable and the remaining limits of the process's cgroups. Memory of other programs is
    excluded, because the kernel would kill a process. Page cache counts as available, because the weights are
    read into it. Swap does not count, because each decode step reads all weights and the KV cache.

    Args:
        proc: The proc file system.
        cgroup: The cgroup file systems, of version 2, version 1 or both.
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
    """Folders of the cgroups whose memory limits apply to this process, from its own to the root."""
    for line in _read(proc / "self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root = cgroup
        elif "memory" in controllers.split(","):
            root = cgroup / "memory"
        else:
            continue
        # In a container the path may be the host's and not exist. The root is then the container's cgroup.
        parts = PurePosixPath(path).parts[1:]
        for depth in range(len(parts), -1, -1):
            yield root.joinpath(*parts[:depth])


def _cgroup_room(folder: Path) -> Iterator[int]:
    """Memory left by each limit of one cgroup; none if it sets no limit or does not exist."""
    # Version 2, then version 1. Page cache counts as used, but can be freed.
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
    """Name → number, for a file with one pair per line."""
    return {name: int(figure) for name, figure in re.findall(r"^(\w+):?\s+(\d+)", _read(path), re.MULTILINE)}


def _read(path: Path) -> str:
    """Text of a kernel file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""  # another system or kernel version: assume no limit
