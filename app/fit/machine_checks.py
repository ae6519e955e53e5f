"""Checks of this machine for ``tokenstream doctor``: CPU, kernel, limits."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.fit.preflight import kernel_permits_amx
from app.machine import numa
from app.machine.cores import physical_cores
from app.machine.identity import cpu_flags
from app.machine.installation import REBUILD
from app.machine.memory import available_memory, machine_memory

# Flags of /proc/cpuinfo, and the instruction sets of native/probe.py that use them.
_FASTER = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
    "amx_int8": "AMX",
}
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check.

    Attributes:
        check: Name of the check.
        status: ``warning``: slower or not complete; ``failure``: the server does not start.
        detail: Observed state.
        remedy: Empty if the status is ``ok``.
    """

    check: str
    status: Literal["ok", "warning", "failure"]
    detail: str
    remedy: str = ""


def ok(check: str, detail: str) -> Finding:
    return Finding(check, "ok", detail)


def warning(check: str, detail: str, remedy: str) -> Finding:
    return Finding(check, "warning", detail, remedy)


def failure(check: str, detail: str, remedy: str = "") -> Finding:
    return Finding(check, "failure", detail, remedy)


def check_machine(
    cpu: Mapping[str, str],
    manifest: Mapping[str, Any],
    n_threads: int | None,
    sys: Path = Path("/sys"),
    *,
    on_one_node: bool = True,
) -> Iterator[Finding]:
    """Check the machine.

    Args:
        cpu: First processor of /proc/cpuinfo.
        manifest: Build manifest of the native library.
        n_threads: MODEL_THREADS.
        sys: The sys file system.
        on_one_node: Whether NUMA is ``auto``.
    """
    yield _check_cpu(cpu, manifest)
    yield _check_amx(cpu)
    yield _check_huge_pages(sys)
    yield _check_governor(sys)
    yield _check_cores(n_threads)
    yield _check_numa(numa.place(n_threads, enabled=on_one_node, sys=sys))
    yield _check_memory()


def _check_cpu(cpu: Mapping[str, str], manifest: Mapping[str, Any]) -> Finding:
    check, model = "CPU", cpu.get("model name", platform.machine())
    flags, sets = cpu_flags(cpu), manifest.get("instruction_sets", [])
    if not flags or not sets:
        return ok(check, f"{model}; llama.cpp chose its instruction sets")
    needed: Mapping[str, list[str]] = manifest.get("cpuinfo_flags", {})
    missing = [name for name, names in needed.items() if not set(names) <= flags]
    if missing:
        return failure(
            check, f"{model} lacks {', '.join(missing)}, which the library uses", f"run `{REBUILD}`"
        )
    unused = [name for flag, name in _FASTER.items() if flag in flags and name not in sets]
    if "AMX" in unused and not kernel_permits_amx():
        unused.remove("AMX")
    if unused:
        detail = f"{model} has {', '.join(unused)}, which the library does not use"
        return warning(check, detail, f"run `{REBUILD}` without LLAMA_BUILD_FLAGS")
    return ok(check, f"{model}; the library uses {', '.join(sets)}")


def _check_amx(cpu: Mapping[str, str]) -> Finding:
    if "amx_tile" not in cpu.get("flags", "").split():
        return ok("AMX", "this CPU has none")
    if kernel_permits_amx():
        return ok("AMX", "the kernel permits it")
    return warning(
        "AMX",
        "the kernel does not permit it",
        "use Linux 5.16 or newer, and a sandbox that permits arch_prctl",
    )


def _check_huge_pages(sys: Path) -> Finding:
    check, place = "huge pages", sys / "kernel/mm/transparent_hugepage/enabled"
    try:
        choices = place.read_text().split()
    except OSError:
        return ok(check, "this kernel has no transparent huge pages")
    chosen = next((choice.strip("[]") for choice in choices if choice.startswith("[")), "unknown")
    if chosen == "never":
        remedy = f"as root: echo madvise > {place}"
        return warning(check, "transparent huge pages are off, so large matrices need more time", remedy)
    return ok(check, f"transparent huge pages: {chosen}")


def _check_governor(sys: Path) -> Finding:
    check = "governor"
    folders = sorted((sys / "devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    found = {(_read(folder / "scaling_governor"), _read(folder / "scaling_driver")) for folder in folders}
    # intel_pstate and amd-pstate-epp raise the frequency under load with powersave too.
    slow = sorted(
        {governor for governor, driver in found if governor == "powersave" and "pstate" not in driver}
    )
    if slow:
        remedy = "as root: cpupower frequency-set --governor performance"
        return warning(check, f"{slow[0]} keeps the lowest frequency", remedy)
    names = ", ".join(sorted({governor for governor, _ in found}))
    return ok(check, names or "the frequency is not controlled here")


def _check_cores(n_threads: int | None) -> Finding:
    check, cores = "cores", physical_cores()
    detail = f"{cores} physical cores within affinity and cgroup quota, of {os.cpu_count()} logical CPUs"
    if n_threads is not None and n_threads > cores:
        remedy = f"unset MODEL_THREADS, or set it to {cores}"
        return warning(check, f"MODEL_THREADS={n_threads} exceeds {detail}", remedy)
    return ok(check, detail)


def _check_numa(placement: numa.Placement) -> Finding:
    check = "NUMA"
    if len(placement.nodes) > 1 and placement.chosen is None and placement.reason != numa.OFF:
        most = max(node.n_cores for node in placement.nodes)
        return warning(check, str(placement), f"compare the speed with MODEL_THREADS={most}")
    return ok(check, str(placement))


def _check_memory() -> Finding:
    check, available, total = "memory", available_memory(), machine_memory()
    detail = f"{available / _GB:.1f} GB available of {total / _GB:.1f} GB"
    if available < 0.5 * _GB:
        return warning(check, detail, "end other programs, or raise the memory limit of the container")
    return ok(check, detail)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
