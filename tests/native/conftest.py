"""Fixtures for native/. It is a folder of scripts, so its modules are imported without a package."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

NATIVE = Path(__file__).resolve().parents[2] / "native"
sys.path.insert(0, str(NATIVE))

import wheels  # noqa: E402
from compilers import Toolchain, find_toolchain  # noqa: E402
from probe import Findings, probe  # noqa: E402

# A compiler that accepts every flag. Instead of a probe it compiles two lines, which pass on every CPU.
# ``special`` changes its result for one source.
_WRAPPER = """#!/bin/sh
out= previous= source=
for word; do
    [ "$previous" = -o ] && out=$word
    case $word in *.c) source=$(basename "$word") ;; esac
    previous=$word
done
[ "$1" = --version ] && {{ echo "fake 1.0"; exit 0; }}
code='#include <stdio.h>
int main(void) {{ puts("right"); return 0; }}'
{special}
printf '%s' "$code" | {compiler} -w -x c - -o "$out"
"""


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    return find_toolchain(os.environ)


@pytest.fixture(scope="session")
def findings(toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """The probes of this CPU. One process of a test run executes them, for 8 s."""
    base = tmp_path_factory.getbasetemp()
    stored = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "findings"
    with FileLock(f"{stored}.lock"):
        if not stored.exists():
            stored.write_bytes(pickle.dumps(probe(toolchain)))
    found: Findings = pickle.loads(stored.read_bytes())
    return found


@pytest.fixture(scope="session")
def compiled_folder() -> Path:
    """A folder for compiled programs, common to all test runs."""
    folder = wheels.cache_folder(os.environ).parent / "compiled-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def compiler_with(tmp_path: Path, toolchain: Toolchain) -> Callable[..., Toolchain]:
    """Make a toolchain of fake compilers. Each executes lines of shell before it compiles.

    The lines can use ``$source`` (file name of the probe), ``$*`` (arguments) and ``$code`` (program).
    """

    def make(cxx: str, c: str = "") -> Toolchain:
        for name, special in (("fake++", cxx), ("fakecc", c)):
            script = tmp_path / name
            script.write_text(_WRAPPER.format(special=special, compiler=toolchain.c.name))
            script.chmod(0o755)
        return find_toolchain({**os.environ, "CXX": str(tmp_path / "fake++"), "CC": str(tmp_path / "fakecc")})

    return make


# A build backend without compilation. Its wheel contains its environment variables and the time.
BACKEND = """
import json, os, pathlib, sys, time, zipfile

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    {before}
    name = "llama_cpp_python-9.9.9-py3-none-any.whl"
    info = "llama_cpp_python-9.9.9.dist-info"
    with zipfile.ZipFile(pathlib.Path(wheel_directory, name), "w") as archive:
        archive.writestr("llama_cpp/environment.json", json.dumps({{**os.environ, "python": sys.prefix, "at": time.time()}}))
        archive.writestr(f"{{info}}/METADATA", "Metadata-Version: 2.1\\nName: llama_cpp_python\\nVersion: 9.9.9\\n")
        archive.writestr(f"{{info}}/WHEEL", "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(f"{{info}}/RECORD", "")
    return name
"""  # noqa: E501


PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "llama_cpp_python"
version = "9.9.9"
"""


@pytest.fixture
def requirements(tmp_path: Path) -> Callable[..., Path]:
    """Make a requirements folder with a small pinned sdist. Its backend first executes ``before``."""

    def make(before: str = "pass") -> Path:
        folder = tmp_path / "requirements"
        folder.mkdir(exist_ok=True)
        sdist = folder / "llama_cpp_python-9.9.9.tar.gz"
        files = {
            "pyproject.toml": PYPROJECT,
            "backend.py": BACKEND.format(before=before),
            "PKG-INFO": "Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 9.9.9\n",
        }
        with tarfile.open(sdist, "w:gz") as archive:
            for name, text in files.items():
                entry = tarfile.TarInfo(f"llama_cpp_python-9.9.9/{name}")
                entry.size = len(text.encode())
                archive.addfile(entry, io.BytesIO(text.encode()))
        digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
        pinned = f"--no-index\n--find-links {folder}\nllama-cpp-python==9.9.9 --hash=sha256:{digest}\n"
        (folder / "native.txt").write_text(pinned)
        (folder / "build.txt").write_text("# nothing is needed\n")
        return folder

    return make
