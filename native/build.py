"""Build llama-cpp-python for this CPU and install it.

    python native/build.py install --venv .venv    build the wheel or take it from the cache; install it
    python native/build.py probe                   print the usable instruction sets and the build flags
    python native/build.py compilers               print the compilers

Needs Python 3.10 or newer and a C++ compiler, but no Python packages. Environment variables:

    GPU                      cuda, vulkan or metal: a library that also computes on a GPU.
    LLAMA_BUILD_FLAGS        CMake definitions. They take precedence over the probes' results.
                             Without AMX: "-DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF".
                             llama.cpp's -march=native: "-DGGML_NATIVE=ON".
                             OpenMP, off by default: "-DGGML_OPENMP=ON".
    CC, CXX, CFLAGS, CXXFLAGS, LDFLAGS
                             compilers and flags, for the probes and for the build
    CMAKE_BUILD_PARALLEL_LEVEL
                             number of concurrent compilers (default: limited by cores and memory)
    TOKENSTREAM_WHEEL_CACHE  folder of built wheels (default: ~/.cache/tokenstream/wheels)
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import cpu
from compilers import NoCompilerError, find_toolchain
from plan import BuildFlagsError, Plan, make_plan
from probe import INSTRUCTION_SETS, Findings, probe
from steps import BuildError, duration
from wheels import Builder, Wheel, cache_folder, obtain

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
MANIFEST = "native-build.json"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="build.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    installing = commands.add_parser("install", help="build and install llama-cpp-python")
    installing.add_argument("--venv", type=Path, required=True, help="target Python environment")
    installing.add_argument("--rebuild", action="store_true", help="build even if the wheel is in the cache")
    commands.add_parser("probe", help="print the usable instruction sets and the build flags")
    commands.add_parser("compilers", help="print the compilers")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if chosen.command == "probe":
            show()
        elif chosen.command == "compilers":
            toolchain = find_toolchain()
            print(f"{toolchain.c.version}\n{toolchain.cxx.version}")
        else:
            install(chosen.venv, rebuild=chosen.rebuild)
    except (BuildError, BuildFlagsError, NoCompilerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; installed nothing", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def show() -> None:
    """Print the probes' results and the resulting flags."""
    plan, findings = _plan()
    print(f"CPU        {cpu.model()}")
    for compiler in (plan.toolchain.c, plan.toolchain.cxx):
        print(f"{compiler.language.upper():10} {compiler.name}: {compiler.version}")
    print()
    if findings.unprobed:
        print(f"Not probed: {findings.unprobed}. llama.cpp chooses the instruction sets.")
    for name, reason in findings.reasons.items():
        print(f"{name:12} {_description(name, reason, plan, findings)}")
    print("\nFlags")
    for argument in plan.cmake_args:
        print(f"  {argument}")
    print(f"\nCached in {cache_folder() / plan.key}")


def _description(name: str, reason: str | None, plan: Plan, findings: Findings) -> str:
    if reason is not None:
        return f"no   {reason}"
    if name not in plan.instruction_sets:
        why_off = (
            "disabled by LLAMA_BUILD_FLAGS"
            if os.environ.get("LLAMA_BUILD_FLAGS")
            else "AVX512_VNNI has the same kernels"
        )
        return f"yes  off: {why_off}"
    if name == "AMX" and findings.amx_header == "repaired":
        return "yes  with a corrected _tile_loadconfig: the compiler's version drops stores"
    return "yes"


def install(venv: Path, *, rebuild: bool) -> None:
    """Install the library and its manifest in ``venv``.

    Raises:
        BuildError: The build or the installation fails.
        NoCompilerError: No usable compiler is found.
        BuildFlagsError: LLAMA_BUILD_FLAGS is invalid.
    """
    python = venv / "bin" / "python"
    if not python.exists():
        raise BuildError(f"{venv} is not a Python environment; create it with: python3 -m venv {venv}")
    if os.environ.get("CMAKE_ARGS"):
        print("warning: CMAKE_ARGS is ignored; set LLAMA_BUILD_FLAGS to CMake definitions", file=sys.stderr)
    plan, _ = _plan()
    folder = cache_folder() / plan.key
    wheel = obtain(folder, Builder(plan, REQUIREMENTS, folder / "build.log"), rebuild=rebuild)
    _pip_install(python, wheel.path)
    _write_manifest(venv / MANIFEST, plan, wheel)
    print(_summary(plan, wheel))


def _plan() -> tuple[Plan, Findings]:
    toolchain = find_toolchain()
    findings = probe(toolchain)
    return make_plan(REQUIREMENTS / "native.txt", toolchain, findings), findings


def _pip_install(python: Path, wheel: Path) -> None:
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--no-index",
        "--no-deps",
        "--force-reinstall",
        str(wheel),
    ]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode:
        raise BuildError(f"pip failed to install {wheel}:\n{(result.stderr or result.stdout).strip()}")


def _write_manifest(path: Path, plan: Plan, wheel: Wheel) -> None:
    """Record the build. After a crash, the server compares the instruction sets with the CPU."""
    built_at = datetime.fromtimestamp(wheel.path.stat().st_mtime, timezone.utc)
    manifest = {
        "library": "llama-cpp-python",
        "version": plan.version,
        "key": plan.key,
        "flags": plan.cmake_args,
        "instruction_sets": plan.instruction_sets,
        "cpuinfo_flags": {name: INSTRUCTION_SETS[name].cpuinfo for name in plan.instruction_sets},
        "repaired_tile_loadconfig": plan.repaired_tile_loadconfig,
        "compiler": plan.toolchain.cxx.version,
        "cpu": cpu.model(),
        "built_at": built_at.isoformat(timespec="seconds"),
    }
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _summary(plan: Plan, wheel: Wheel) -> str:
    sets = " ".join(plan.instruction_sets) or "instruction sets chosen by llama.cpp"
    origin = "taken from the cache" if wheel.seconds is None else f"built in {duration(wheel.seconds)}"
    return f"llama-cpp-python {plan.version} {origin} and installed, with {sets}"


if __name__ == "__main__":
    sys.exit(main())
