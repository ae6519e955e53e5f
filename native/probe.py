"""Determine the instruction sets that this CPU and this compiler support.

Each set has a program in ``probes/``. It is compiled with ggml's flags for the set and run in a child
process. A crash or a wrong result rules the set out. CPUID and compiler versions are not used: hypervisors,
kernels and compiler headers can contradict them.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from compilers import Compiler, NoCompilerError, Toolchain

HERE = Path(__file__).resolve().parent
AMX_HEADER = HERE / "amx_tile_config.h"
_BASELINE = HERE / "probes" / "baseline.c"

_RIGHT = "right"
_TIMEOUT = 60.0  # seconds per compilation or run; each usually takes less than 1 s


@dataclass(frozen=True)
class InstructionSet:
    """An instruction set.

    Attributes:
        name: Name of the probe, in capitals.
        options: ggml's CMake options, without ``GGML_``.
        flags: ggml's compiler flags.
        needs: Required sets.
        cpuinfo: Flags of /proc/cpuinfo.
    """

    name: str
    options: tuple[str, ...]
    flags: tuple[str, ...]
    needs: tuple[str, ...]
    cpuinfo: tuple[str, ...]

    @property
    def source(self) -> Path:
        """Source of the probe."""
        return HERE / "probes" / f"{self.name.lower()}.c"


def _set(name: str, flags: str, cpuinfo: str, needs: str = "", options: str = "") -> InstructionSet:
    return InstructionSet(
        name,
        tuple(options.split()) or (name,),
        tuple(f"-m{flag}" for flag in flags.split()),
        tuple(needs.split()),
        tuple(cpuinfo.split()),
    )


# Oldest first. Options and flags: llama.cpp, ggml/src/ggml-cpu/CMakeLists.txt, x86 branch.
# AMX needs AVX512_VNNI because ggml compiles its AMX kernels only with both.
INSTRUCTION_SETS = {
    row.name: row
    for row in (
        _set("SSE42", "sse4.2", "sse4_2"),
        _set("BMI2", "bmi2", "bmi2"),
        _set("AVX", "avx", "avx", "SSE42"),
        _set("F16C", "f16c", "f16c", "AVX"),
        _set("FMA", "fma", "fma", "AVX"),
        _set("AVX2", "avx2", "avx2", "AVX"),
        _set("AVX_VNNI", "avxvnni", "avx_vnni", "AVX2"),
        _set(
            "AVX512",
            "avx512f avx512cd avx512vl avx512dq avx512bw",
            "avx512f avx512cd avx512vl avx512dq avx512bw",
            "AVX2 FMA F16C",
        ),
        _set("AVX512_VBMI", "avx512vbmi", "avx512vbmi", "AVX512"),
        _set("AVX512_VNNI", "avx512vnni", "avx512_vnni", "AVX512"),
        _set("AVX512_BF16", "avx512bf16", "avx512_bf16", "AVX512"),
        _set("AMX", "amx-tile amx-int8", "amx_tile amx_int8", "AVX512_VNNI", "AMX_TILE AMX_INT8"),
    )
}


@dataclass(frozen=True)
class Findings:
    """Results of the probes.

    Attributes:
        reasons: None for each usable set, else the reason against it. Empty if nothing was probed.
        amx_header: ``"sound"``, ``"repaired"`` (sound with AMX_HEADER), or ``"unknown"`` (AMX does not run).
        unprobed: Reason why nothing was probed: not x86-64, or compiled programs do not run.
    """

    reasons: dict[str, str | None]
    amx_header: str = "unknown"
    unprobed: str = ""

    @property
    def usable(self) -> tuple[str, ...]:
        """Usable sets, oldest first."""
        return tuple(name for name, reason in self.reasons.items() if reason is None)


def probe(toolchain: Toolchain) -> Findings:
    """Probe every instruction set; takes a few seconds.

    Raises:
        NoCompilerError: A compiler cannot compile a trivial program.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return Findings({}, unprobed=f"the probes support x86-64 only, not {platform.machine()}")
    with tempfile.TemporaryDirectory(prefix="tokenstream-probe-") as folder:
        return _probe_in(Path(folder), toolchain)


def _probe_in(folder: Path, toolchain: Toolchain) -> Findings:
    for compiler in (toolchain.c, toolchain.cxx):
        program = folder / f"baseline-{compiler.language}"
        failure = _compile(compiler, _BASELINE, program, ())
        if failure:
            raise NoCompilerError(f"{compiler.name} cannot compile a trivial program: {failure}")
        failure = _run(program)
        if failure:
            return Findings({}, unprobed=f"programs of {compiler.name} do not run here: {failure}")
    trial = _Trial(folder, toolchain.cxx)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tried = dict(zip(INSTRUCTION_SETS, pool.map(trial, INSTRUCTION_SETS.values()), strict=True))
    amx_header = "sound" if tried["AMX"] is None else "unknown"
    if (
        tried["AMX"] is not None
        and _Trial(folder, toolchain.cxx, AMX_HEADER)(INSTRUCTION_SETS["AMX"]) is None
    ):
        tried["AMX"], amx_header = None, "repaired"
    return _confirmed_in_c(folder, toolchain.c, Findings(_with_needs_met(tried), amx_header))


def _with_needs_met(tried: dict[str, str | None]) -> dict[str, str | None]:
    reasons: dict[str, str | None] = {}
    for name, reason in tried.items():
        missing = [need for need in INSTRUCTION_SETS[name].needs if reasons[need] is not None]
        reasons[name] = f"needs {' and '.join(missing)}" if missing else reason
    return reasons


def _confirmed_in_c(folder: Path, compiler: Compiler, findings: Findings) -> Findings:
    """Compile in C with the flags of all usable sets. If that fails, probe each set in C."""
    flags = [flag for name in findings.usable for flag in INSTRUCTION_SETS[name].flags]
    program = folder / "together-c"
    if (_compile(compiler, _BASELINE, program, flags) or _run(program)) is None:
        return findings
    trial = _Trial(folder, compiler, AMX_HEADER if findings.amx_header == "repaired" else None)
    reasons = {name: reason or trial(INSTRUCTION_SETS[name]) for name, reason in findings.reasons.items()}
    return replace(findings, reasons=_with_needs_met(reasons))


@dataclass(frozen=True)
class _Trial:
    """Probe of a set with one compiler; returns None, or the reason against the set."""

    folder: Path
    compiler: Compiler
    include: Path | None = None

    def __call__(self, tried: InstructionSet) -> str | None:
        flags = [*flags_with_needs(tried)]
        if self.include:
            flags += ["-include", str(self.include)]
        program = self.folder / f"{tried.name}-{self.compiler.language}"
        failure = _compile(self.compiler, tried.source, program, flags) or _run(program)
        return f"{failure} ({self.compiler.name})" if failure else None


def flags_with_needs(wanted: InstructionSet) -> tuple[str, ...]:
    """Compiler flags of a set and its required sets, oldest first, without duplicates."""
    flags: list[str] = []
    for need in wanted.needs:
        flags += flags_with_needs(INSTRUCTION_SETS[need])
    return tuple(dict.fromkeys([*flags, *wanted.flags]))


def _compile(compiler: Compiler, source: Path, program: Path, flags: Sequence[str]) -> str | None:
    """Compile as in a Release build, CFLAGS first; returns the compiler's first error or None."""
    language = ("-x", compiler.language)
    command = [*compiler.command, *compiler.flags, "-O3", "-DNDEBUG", "-w", *flags]
    try:
        result = subprocess.run(
            [*command, *language, str(source), "-o", str(program)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"compiler failed: {error}"
    if result.returncode == 0:
        return None
    lines = result.stderr.splitlines() or ["no message"]
    return "does not compile: " + next((line for line in lines if "error" in line), lines[0]).strip()


def _run(program: Path) -> str | None:
    """Run a probe; returns None if it prints "right", else the reason against the set."""
    try:
        # The temporary folder also receives a core file.
        result = subprocess.run(
            [str(program)],
            cwd=program.parent,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    if result.returncode < 0:
        return f"killed by {signal.Signals(-result.returncode).name}"
    answer = result.stdout.strip()
    if result.returncode == 0 and answer == _RIGHT:
        return None
    return answer or f"exit status {result.returncode}"
