"""NUMA: threads stay on one node, because memory of another node is slower.

Source: Documentation/admin-guide/mm/numa_memory_policy.rst and Documentation/ABI/stable/sysfs-devices-node of
Linux. A thread allocates memory on its own node as long as that has some.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from app.machine.cores import count_cores, cpu_quota, usable_cpus

logger = logging.getLogger("tokenstream.numa")

_SYS = Path("/sys")
OFF = "NUMA=off"  # a reason


@dataclass(frozen=True, slots=True)
class Node:
    """A NUMA node with at least one CPU that this process may use.

    Attributes:
        number: Its number in /sys.
        cpus: These CPUs.
        n_cores: Their physical cores.
        free: Bytes of free memory, including page cache.
    """

    number: int
    cpus: frozenset[int]
    n_cores: int
    free: int

    def __str__(self) -> str:
        return f"node {self.number} ({self.n_cores} cores, {self.free / 1e9:.1f} GB free)"


@dataclass(frozen=True, slots=True)
class Placement:
    """Nodes of this machine, and the one whose CPUs the threads use.

    Attributes:
        nodes: All usable nodes.
        chosen: None: threads may use all CPUs.
        reason: Reason for the choice.
    """

    nodes: tuple[Node, ...]
    chosen: Node | None
    reason: str

    def __str__(self) -> str:
        if len(self.nodes) < 2:
            return self.reason
        seen = f"{len(self.nodes)} nodes: {', '.join(map(str, self.nodes))}"
        use = f"threads stay on node {self.chosen.number}" if self.chosen else "threads use all nodes"
        return f"{seen}; {use}: {self.reason}"


def place(n_threads: int | None, *, enabled: bool, sys: Path = _SYS, cpus: Collection[int] = ()) -> Placement:
    """Choose a node: the one with the most usable cores, then the one with the most free memory.

    Args:
        n_threads: MODEL_THREADS.
        enabled: Whether NUMA is ``auto``.
        sys: The sys file system.
        cpus: CPUs that this process may use; empty: those of its affinity.
    """
    nodes = _nodes(sys, frozenset(cpus) or usable_cpus())
    if len(nodes) < 2:
        return Placement(nodes, None, "one node")
    if not enabled:
        return Placement(nodes, None, OFF)
    best = max(nodes, key=lambda node: (node.n_cores, node.free, -node.number))
    if n_threads is not None and n_threads > best.n_cores:
        return Placement(nodes, None, f"MODEL_THREADS={n_threads} exceeds the cores of a node")
    quota = cpu_quota()
    if n_threads is None and quota is not None and quota > best.n_cores:
        return Placement(nodes, None, f"the CPU quota of {quota:g} exceeds the cores of a node")
    equal = [node for node in nodes if node.n_cores == best.n_cores]
    return Placement(nodes, best, "it has the most " + ("free memory" if len(equal) > 1 else "cores"))


def pin(placement: Placement) -> None:
    """Keep this thread, and threads and processes that it starts later, on the chosen node, and log it."""
    if placement.chosen is not None:
        os.sched_setaffinity(0, placement.chosen.cpus)
    if len(placement.nodes) > 1:
        logger.info("NUMA: %s", placement)


def _nodes(sys: Path, usable: frozenset[int]) -> tuple[Node, ...]:
    nodes = []
    for folder in (sys / "devices/system/node").glob("node[0-9]*"):
        cpus = usable & parse_list(_read(folder / "cpulist"))
        if cpus:  # a node can have memory only
            number = int(folder.name.removeprefix("node"))
            nodes.append(Node(number, cpus, count_cores(cpus, sys), _free(_read(folder / "meminfo"))))
    return tuple(sorted(nodes, key=lambda node: node.number))


def parse_list(text: str) -> frozenset[int]:
    """CPUs of a list such as ``0-3,8``."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def _free(meminfo: str) -> int:
    """Free memory and page cache of lines such as ``Node 0 MemFree:  1024 kB``, in bytes."""
    found = dict(re.findall(r"^Node \d+ (MemFree|FilePages):\s+(\d+) kB", meminfo, re.MULTILINE))
    return sum(map(int, found.values())) * 1024


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
