"""Builds for other CPUs: one library for each generation of instruction sets, in one archive.

`app/fit/builds.py` chooses among installed builds at start.
"""

from __future__ import annotations

import filecmp
import os
import platform
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from compilers import NoCompilerError, Toolchain, find_toolchain
from plan import Plan, make_plan
from probe import INSTRUCTION_SETS, Findings
from steps import BuildError

FOLDER = "native-builds"  # in the Python environment
MANIFEST = "native-build.json"

X86_64, AARCH64 = "x86_64", "aarch64"
_AVX2 = ("SSE42", "BMI2", "AVX", "F16C", "FMA", "AVX2")
_AVX512 = (*_AVX2, "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")
_DOTPROD = ("FP16", "DOTPROD")
# Flags of /proc/cpuinfo for the extensions of ARMv8.2 below.
_ARM_SETS = {"FP16": "asimdhp", "DOTPROD": "asimddp", "I8MM": "i8mm"}


@dataclass(frozen=True)
class Build:
    """A build for a generation of CPUs.

    Attributes:
        machine: X86_64 or AARCH64.
        sets: Instruction sets.
    """

    machine: str
    sets: tuple[str, ...]

    def findings(self) -> Findings:
        """The instruction sets without probes: this CPU may lack them."""
        if self.machine != X86_64:
            return Findings({}, unprobed="the build is for other CPUs too")
        return Findings(
            {name: None if name in self.sets else "not in this build" for name in INSTRUCTION_SETS}
        )

    def cpuinfo_flags(self) -> dict[str, tuple[str, ...]]:
        """Flags of /proc/cpuinfo by instruction set."""
        if self.machine != X86_64:
            return {name: (_ARM_SETS[name],) for name in self.sets}
        return {name: INSTRUCTION_SETS[name].cpuinfo for name in self.sets}

    def plan(
        self, requirements: Path, toolchain: Toolchain, environment: Mapping[str, str] = os.environ
    ) -> Plan:
        """CMake's arguments; LLAMA_BUILD_FLAGS takes precedence."""
        if self.machine == X86_64:
            return make_plan(requirements, toolchain, self.findings(), environment)
        extensions = "".join(f"+{name.lower()}" for name in self.sets)
        flags = f"-DGGML_NATIVE=OFF -DGGML_CPU_ARM_ARCH=armv8.2-a{extensions}"
        if is_foreign(self.machine):
            flags += f" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR={self.machine}"
        flags = f"{flags} {environment.get('LLAMA_BUILD_FLAGS', '')}"
        plan = make_plan(
            requirements, toolchain, self.findings(), {**environment, "LLAMA_BUILD_FLAGS": flags}
        )
        return replace(plan, instruction_sets=self.sets)


# By name, for each machine the slowest build first.
BUILDS = {
    "x86-64-v2": Build(X86_64, ("SSE42",)),  # 2009
    "avx2": Build(X86_64, _AVX2),  # Haswell, Zen 1
    "avx512": Build(X86_64, _AVX512),  # Cooper Lake, Zen 4
    "amx": Build(X86_64, (*_AVX512, "AMX")),  # Sapphire Rapids
    "dotprod": Build(AARCH64, _DOTPROD),  # Cortex-A76, Neoverse N1
    "i8mm": Build(AARCH64, (*_DOTPROD, "I8MM")),  # Neoverse V1 and N2
}


def this_machine() -> str:
    """The machine of this interpreter, by the names above."""
    machine = platform.machine().lower()
    return {"amd64": X86_64, "arm64": AARCH64}.get(machine, machine)


def is_foreign(machine: str) -> bool:
    """Whether programs of a machine need an emulator here."""
    return machine != this_machine()


def find_compilers(machine: str, environment: Mapping[str, str] = os.environ) -> Toolchain:
    """The compilers for a machine: for another one, the GNU cross compilers by their usual names.

    Raises:
        NoCompilerError: They are not installed.
    """
    if not is_foreign(machine):
        return find_toolchain(environment)
    names = {"CC": f"{machine}-linux-gnu-gcc", "CXX": f"{machine}-linux-gnu-g++"}
    try:
        return find_toolchain({**environment, **names})
    except NoCompilerError as error:
        package = f"g++-{machine.replace('_', '-')}-linux-gnu"
        raise NoCompilerError(f"{error}; for {machine}, Debian and Ubuntu: apt install {package}") from None


def write_archive(path: Path, builds: dict[str, tuple[Path, str]]) -> None:
    """Write wheels and manifests.

    Args:
        path: The archive.
        builds: Wheel and manifest (JSON) by name.
    """
    unfinished = path.with_suffix(".tmp")
    with zipfile.ZipFile(unfinished, "w") as archive:
        for name, (wheel, manifest) in builds.items():
            archive.write(wheel, f"{name}/{wheel.name}")
            archive.writestr(f"{name}/{MANIFEST}", manifest)
    unfinished.replace(path)


def install_archive(source: str, venv: Path, install_wheel: Callable[[Path], None]) -> list[str]:
    """Install the builds of an archive in a Python environment, replacing earlier ones.

    Args:
        source: Path or URL of the archive.
        venv: The environment.
        install_wheel: Installs a wheel in it: the package, with the library of one build.

    Returns:
        The names of the builds.

    Raises:
        BuildError: The archive cannot be read, or it is no archive of builds.
    """
    target = venv / FOLDER
    with _local(source) as path, tempfile.TemporaryDirectory(prefix=".builds-", dir=venv) as scratch:
        folder = Path(scratch) / "archive"
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise BuildError(f"WHEELS={source}: {error}") from error
        wheels = {wheel.parent.name: wheel for wheel in sorted(folder.glob("*/*.whl"))}
        ours = [name for name, build in BUILDS.items() if not is_foreign(build.machine)]
        names = [name for name in ours if name in wheels]
        if not names:
            raise BuildError(
                f"WHEELS={source}: contains none of the builds for {this_machine()}: "
                f"{', '.join(ours) or 'there are none'}; see make wheels"
            )
        installed = Path(scratch) / FOLDER
        for name in names:
            with zipfile.ZipFile(wheels[name]) as wheel:
                wheel.extractall(folder / name)
            shutil.copytree(folder / name / "llama_cpp/lib", installed / name)
            shutil.copy(folder / name / MANIFEST, installed / name)
        _link_equal_files(installed)
        install_wheel(wheels[names[0]])
        shutil.rmtree(target, ignore_errors=True)
        installed.replace(target)
    return names


def _link_equal_files(folder: Path) -> None:
    """Replace copies by symbolic links. Only libggml-cpu differs; a wheel has each library three times."""
    by_size: dict[int, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        known = by_size.setdefault(path.stat().st_size, [])
        first = next((other for other in known if filecmp.cmp(path, other, shallow=False)), None)
        if first is None:
            known.append(path)
            continue
        path.unlink()
        path.symlink_to(os.path.relpath(first, path.parent))


@contextmanager
def _local(source: str) -> Iterator[Path]:
    """The path of an archive, downloaded if it is a URL."""
    if "://" not in source:
        yield Path(source).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="tokenstream-builds-") as folder:
        path = Path(folder) / "builds.zip"
        try:
            with urllib.request.urlopen(source, timeout=60) as response, path.open("wb") as file:
                shutil.copyfileobj(response, file)
        except OSError as error:
            raise BuildError(f"WHEELS={source}: {error}") from error
        yield path
