"""Which instruction sets this CPU and this compiler truly run together.

Every set has a small program in ``probes/``. It is compiled with the flags that ggml's CMakeLists
give the set and executed in a child process: a child that dies, or does not print the right
result, is a no. Neither CPUID nor the compiler's version is asked, because hypervisors, kernels and
broken headers make both lie.
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
_TIMEOUT = 60.0  # seconds for one compilation or one run; both take well under one


@dataclass(frozen=True)
class InstructionSet:
    """One row of the table: ``options`` without their ``GGML_``, the compiler's ``flags`` as ggml gives them.

    ``needs`` names the sets that must be on too, and ``cpuinfo`` the flags that Linux shows for it.
    """

    name: str
    options: tuple[str, ...]
    flags: tuple[str, ...]
    needs: tuple[str, ...]
    cpuinfo: tuple[str, ...]

    @property
    def source(self) -> Path:
        """The program that tries it."""
        return HERE / "probes" / f"{self.name.lower()}.c"


def _set(name: str, flags: str, cpuinfo: str, needs: str = "", options: str = "") -> InstructionSet:
    return InstructionSet(
        name,
        tuple(options.split()) or (name,),
        tuple(f"-m{flag}" for flag in flags.split()),
        tuple(needs.split()),
        tuple(cpuinfo.split()),
    )


# Oldest first. Source of options and flags: llama.cpp, ggml/src/ggml-cpu/CMakeLists.txt, the x86 branch.
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
    """What the probes found.

    Attributes:
        reasons: For every set of the table None where it is usable, else why it is not. Empty where
            nothing could be probed.
        amx_header: ``"sound"``, ``"repaired"`` (sound with AMX_HEADER forced in), or ``"unknown"``
            where AMX does not run at all.
        unprobed: Why nothing could be probed: not an x86-64, or programs do not run here.
    """

    reasons: dict[str, str | None]
    amx_header: str = "unknown"
    unprobed: str = ""

    @property
    def usable(self) -> tuple[str, ...]:
        """The usable sets, oldest first."""
        return tuple(name for name, reason in self.reasons.items() if reason is None)


def probe(toolchain: Toolchain) -> Findings:
    """Try every instruction set; takes a few seconds.

    Raises:
        NoCompilerError: A compiler cannot compile even a trivial program.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return Findings({}, unprobed=f"the probes know x86-64 only, and this is {platform.machine()}")
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
    return _confirmed_in_c(folder, toolchain.c, Findings(_less_those_in_need(tried), amx_header))


def _less_those_in_need(tried: dict[str, str | None]) -> dict[str, str | None]:
    reasons: dict[str, str | None] = {}
    for name, reason in tried.items():
        missing = [need for need in INSTRUCTION_SETS[name].needs if reasons[need] is not None]
        reasons[name] = f"needs {' and '.join(missing)}" if missing else reason
    return reasons


def _confirmed_in_c(folder: Path, compiler: Compiler, findings: Findings) -> Findings:
    """Give the C compiler the flags of all usable sets together; where it refuses, ask it set by set."""
    flags = [flag for name in findings.usable for flag in INSTRUCTION_SETS[name].flags]
    program = folder / "together-c"
    if (_compile(compiler, _BASELINE, program, flags) or _run(program)) is None:
        return findings
    trial = _Trial(folder, compiler, AMX_HEADER if findings.amx_header == "repaired" else None)
    reasons = {name: reason or trial(INSTRUCTION_SETS[name]) for name, reason in findings.reasons.items()}
    return replace(findings, reasons=_less_those_in_need(reasons))


@dataclass(frozen=True)
class _Trial:
    """Tries one set with one compiler; returns None where it works, else why not."""

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
    """The compiler's flags for a set and for all that it needs, oldest first, each once."""
    flags: list[str] = []
    for need in wanted.needs:
        flags += flags_with_needs(INSTRUCTION_SETS[need])
    return tuple(dict.fromkeys([*flags, *wanted.flags]))


def _compile(compiler: Compiler, source: Path, program: Path, flags: Sequence[str]) -> str | None:
    """Compile as a Release build does, where CMake puts CFLAGS first; returns the compiler's first error."""
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
        return f"compiling fails: {error}"
    if result.returncode == 0:
        return None
    lines = result.stderr.splitlines() or ["no message"]
    return "does not compile: " + next((line for line in lines if "error" in line), lines[0]).strip()


def _run(program: Path) -> str | None:
    """Run a probe; returns None where it prints the right result."""
    try:
        # In the program's own folder, so that a core file goes away with it.
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
        return f"dies of {signal.Signals(-result.returncode).name}"
    answer = result.stdout.strip()
    if result.returncode == 0 and answer == _RIGHT:
        return None
    return answer or f"exit status {result.returncode}"
