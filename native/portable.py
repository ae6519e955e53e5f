"""Builds for other CPUs: one library for each generation of instruction sets, in one archive.

`app/fit/builds.py` chooses among installed builds at start.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from probe import INSTRUCTION_SETS, Findings
from steps import BuildError

FOLDER = "native-builds"  # in the Python environment
MANIFEST = "native-build.json"

_AVX2 = ("SSE42", "BMI2", "AVX", "F16C", "FMA", "AVX2")
_AVX512 = (*_AVX2, "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")
# Instruction sets by build, the slowest build first.
BUILDS = {
    "x86-64-v2": ("SSE42",),  # 2009
    "avx2": _AVX2,  # Haswell, Zen 1
    "avx512": _AVX512,  # Cooper Lake, Zen 4
    "amx": (*_AVX512, "AMX"),  # Sapphire Rapids
}


def findings(build: str) -> Findings:
    """The instruction sets of a build, without probes: this CPU may lack them."""
    sets = BUILDS[build]
    return Findings({name: None if name in sets else "not in this build" for name in INSTRUCTION_SETS})


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
        names = [name for name in BUILDS if name in wheels]
        if not names:
            raise BuildError(
                f"WHEELS={source}: contains none of the builds {', '.join(BUILDS)}; see make wheels"
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
