"""Build llama-cpp-python for this CPU and install it.

    python native/build.py install --venv .venv    build the wheel or take it from the cache; install it
    python native/build.py install --venv .venv --wheels builds.zip
                                                   install the builds of an archive, from a path or URL
    python native/build.py wheels builds.zip       build for CPUs of several generations, into an archive
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
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import cpu
import portable
from compilers import NoCompilerError, find_toolchain
from plan import BuildFlagsError, Plan, make_plan
from probe import INSTRUCTION_SETS, Findings, probe
from steps import BuildError, duration
from wheels import Builder, Wheel, cache_folder, obtain

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="build.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    installing = commands.add_parser("install", help="build and install llama-cpp-python")
    installing.add_argument("--venv", type=Path, required=True, help="target Python environment")
    installing.add_argument("--rebuild", action="store_true", help="build even if the wheel is in the cache")
    installing.add_argument("--wheels", metavar="ARCHIVE", help="path or URL of an archive of builds")
    making = commands.add_parser("wheels", help="build for CPUs of several generations")
    making.add_argument("archive", type=Path)
    machines = list(dict.fromkeys(build.machine for build in portable.BUILDS.values()))
    making.add_argument(
        *("--machine", "-m"),
        action="append",
        choices=machines,
        help="another one needs a cross compiler; may be repeated (default: this machine)",
    )
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
        elif chosen.command == "wheels":
            make_wheels(chosen.archive, chosen.machine or [portable.this_machine()])
        elif chosen.wheels:
            install_builds(chosen.venv, chosen.wheels)
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
    python = _python(venv)
    if os.environ.get("CMAKE_ARGS"):
        print("warning: CMAKE_ARGS is ignored; set LLAMA_BUILD_FLAGS to CMake definitions", file=sys.stderr)
    plan, _ = _plan()
    folder = cache_folder() / plan.key
    wheel = obtain(folder, Builder(plan, REQUIREMENTS, folder / "build.log"), rebuild=rebuild)
    _pip_install(python, wheel.path)
    # The chosen build takes precedence over this one.
    shutil.rmtree(venv / portable.FOLDER, ignore_errors=True)
    unfinished = (venv / portable.MANIFEST).with_suffix(".tmp")
    flags = {name: INSTRUCTION_SETS[name].cpuinfo for name in plan.instruction_sets}
    unfinished.write_text(_manifest(plan, wheel, flags), encoding="utf-8")
    unfinished.replace(venv / portable.MANIFEST)
    print(f"{_summary(plan, wheel)}; installed")


def make_wheels(archive: Path, machines: Sequence[str]) -> None:
    """Build for CPUs of several generations. LLAMA_BUILD_FLAGS applies to each build.

    Args:
        archive: The file to write.
        machines: Such as x86_64.

    Raises:
        BuildError: A build fails, or a machine has no builds.
        NoCompilerError: No usable compiler is found.
    """
    toolchains = {machine: portable.find_compilers(machine) for machine in machines}
    builds = {}
    for name, build in portable.BUILDS.items():
        if build.machine not in toolchains:
            continue
        plan = build.plan(REQUIREMENTS / "native.txt", toolchains[build.machine])
        folder = cache_folder() / plan.key
        tag = f"linux-{build.machine}" if portable.is_foreign(build.machine) else ""
        wheel = obtain(folder, Builder(plan, REQUIREMENTS, folder / "build.log", tag))
        print(f"{name}: {_summary(plan, wheel)}")
        builds[name] = (wheel.path, _manifest(plan, wheel, build.cpuinfo_flags()))
    if not builds:
        raise BuildError(f"there are no builds for several CPUs of {', '.join(machines)}")
    portable.write_archive(archive, builds)
    print(f"{archive}: {archive.stat().st_size / 1e6:.0f} MB")


def install_builds(venv: Path, source: str) -> None:
    """Install the builds of an archive.

    Raises:
        BuildError: The archive cannot be read, or the installation fails.
    """
    python = _python(venv)
    names = portable.install_archive(source, venv, lambda wheel: _pip_install(python, wheel))
    (venv / portable.MANIFEST).unlink(missing_ok=True)
    print(f"builds {', '.join(names)} installed; the server chooses one at start")


def _python(venv: Path) -> Path:
    python = venv / "bin" / "python"
    if not python.exists():
        raise BuildError(f"{venv} is not a Python environment; create it with: python3 -m venv {venv}")
    return python


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


def _manifest(plan: Plan, wheel: Wheel, cpuinfo_flags: Mapping[str, Sequence[str]]) -> str:
    """A record of the build, as JSON. The server compares the flags with those of the CPU."""
    built_at = datetime.fromtimestamp(wheel.path.stat().st_mtime, timezone.utc)
    manifest = {
        "library": "llama-cpp-python",
        "version": plan.version,
        "key": plan.key,
        "flags": plan.cmake_args,
        "instruction_sets": plan.instruction_sets,
        "cpuinfo_flags": cpuinfo_flags,
        "repaired_tile_loadconfig": plan.repaired_tile_loadconfig,
        "compiler": plan.toolchain.cxx.version,
        "cpu": cpu.model(),
        "built_at": built_at.isoformat(timespec="seconds"),
    }
    return json.dumps(manifest, indent=2) + "\n"


def _summary(plan: Plan, wheel: Wheel) -> str:
    sets = " ".join(plan.instruction_sets) or "instruction sets chosen by llama.cpp"
    origin = "taken from the cache" if wheel.seconds is None else f"built in {duration(wheel.seconds)}"
    return f"llama-cpp-python {plan.version} {origin}, with {sets}"


if __name__ == "__main__":
    sys.exit(main())
