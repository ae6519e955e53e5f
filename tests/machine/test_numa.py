"""NUMA: the choice of a node on recorded topologies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from app.machine import numa
from app.machine.numa import parse_list, place
from tests.conftest import ROOT


class Recorded(NamedTuple):
    """Files of /sys of one node: cpulist, lines of meminfo, threads of a core (thread_siblings_list)."""

    cpulist: str
    free_kb: int
    siblings: tuple[str, ...]


def pairs(first: range, distance: int) -> tuple[str, ...]:
    """Siblings of cores with two threads, as Linux numbers them."""
    return tuple(f"{cpu},{cpu + distance}" for cpu in first)


# Two sockets of a Xeon Gold 6226R with SMT: 16 cores each.
XEON = (
    Recorded("0-15,32-47\n", 90_000_000, pairs(range(16), 32)),
    Recorded("16-31,48-63\n", 120_000_000, pairs(range(16, 32), 32)),
)
# One socket of an EPYC 7313 with four nodes (NPS4), without SMT.
EPYC = tuple(
    Recorded(f"{n * 4}-{n * 4 + 3}\n", 30_000_000, tuple(map(str, range(n * 4, n * 4 + 4)))) for n in range(4)
)
# A socket, and memory on CXL: a node without CPUs.
CXL = (Recorded("0-7\n", 60_000_000, pairs(range(4), 4)), Recorded("\n", 250_000_000, ()))
# A Threadripper 2990WX: the dies 1 and 3 have no memory of their own.
THREADRIPPER = tuple(
    Recorded(f"{n * 8}-{n * 8 + 7}\n", free_kb, tuple(map(str, range(n * 8, n * 8 + 8))))
    for n, free_kb in enumerate((30_000_000, 0, 30_000_000, 0))
)


def tree(folder: Path, nodes: tuple[Recorded, ...]) -> Path:
    for number, node in enumerate(nodes):
        there = folder / f"devices/system/node/node{number}"
        there.mkdir(parents=True)
        (there / "cpulist").write_text(node.cpulist)
        (there / "meminfo").write_text(
            f"Node {number} MemTotal:       263851068 kB\n"
            f"Node {number} MemFree:        {node.free_kb} kB\n"
            f"Node {number} FilePages:      0 kB\n"
            f"Node {number} HugePages_Free:     0\n"
        )
        for siblings in node.siblings:
            for cpu in parse_list(siblings):
                topology = folder / f"devices/system/cpu/cpu{cpu}/topology"
                topology.mkdir(parents=True)
                (topology / "thread_siblings_list").write_text(f"{siblings}\n")
    (folder / "devices/system/node").mkdir(parents=True, exist_ok=True)
    (folder / "devices/system/node/has_cpu").write_text("0\n")  # not a node
    return folder


ALL = frozenset(range(64))


@pytest.mark.parametrize(
    ("nodes", "cpus", "n_threads", "chosen", "reason"),
    [
        (XEON, ALL, None, 1, "it has the most free memory"),
        (XEON, ALL, 16, 1, "it has the most free memory"),
        (XEON, ALL, 17, None, "MODEL_THREADS=17 exceeds the cores of a node"),
        (XEON, {*range(16), 16, 17, 48, 49}, None, 0, "it has the most cores"),  # affinity of a container
        (XEON, range(16), None, None, "one node"),
        (EPYC, ALL, None, 0, "it has the most free memory"),
        (CXL, ALL, None, None, "one node"),
        (THREADRIPPER, ALL, None, 0, "it has the most free memory"),
        (THREADRIPPER, range(8, 16), None, None, "one node"),
        ((), ALL, None, None, "one node"),
    ],
)
def test_the_node_with_the_most_cores_then_memory_is_chosen(
    nodes: tuple[Recorded, ...],
    cpus: frozenset[int],
    n_threads: int | None,
    chosen: int | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numa, "cpu_quota", lambda: None)
    placement = place(n_threads, enabled=True, sys=tree(tmp_path, nodes), cpus=cpus)
    assert (placement.chosen and placement.chosen.number, placement.reason) == (chosen, reason)
    if placement.chosen is not None:
        assert placement.chosen.cpus == parse_list(nodes[placement.chosen.number].cpulist) & set(cpus)
        assert placement.chosen.n_cores == len(nodes[placement.chosen.number].siblings)


def test_a_quota_beyond_a_node_and_numa_off_use_all_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys = tree(tmp_path, XEON)
    off = place(None, enabled=False, sys=sys, cpus=ALL)
    assert str(off) == (
        "2 nodes: node 0 (16 cores, 92.2 GB free), node 1 (16 cores, 122.9 GB free); threads use all nodes: "
        "NUMA=off"
    )
    monkeypatch.setattr(numa, "cpu_quota", lambda: 24.0)
    assert place(None, enabled=True, sys=sys, cpus=ALL).chosen is None
    assert place(8, enabled=True, sys=sys, cpus=ALL).chosen is not None


def test_later_threads_and_processes_stay_on_the_node(tmp_path: Path) -> None:
    """In a process of its own, because it changes the affinity."""
    cpu = min(os.sched_getaffinity(0))
    sys_folder = tree(tmp_path, (Recorded(f"{cpu}\n", 9, (str(cpu),)), Recorded("\n", 1, ())))
    (sys_folder / "devices/system/node/node1/cpulist").write_text("100000\n")
    program = f"""
import logging, os, threading
from pathlib import Path
from app.machine.numa import pin, place
from app.machine.cores import physical_cores
logging.basicConfig(level=logging.INFO, format="%(message)s")
placement = place(None, enabled=True, sys=Path({str(sys_folder)!r}), cpus=[{cpu}, 100000])
pin(placement)
found = []
thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
thread.start()
thread.join()
print(found, physical_cores())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"[{{{cpu}}}] 1\n"
    assert done.stderr.startswith("NUMA: 2 nodes: node 0 (1 cores")
    assert "threads stay on node 0" in done.stderr
