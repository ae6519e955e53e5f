"""Build llama-cpp-python's wheel once for each plan, and keep it.

pip keeps built wheels by their source alone and would hand out one that has other flags: its cache
is switched off, and this one is keyed by everything that goes into the build.
"""

from __future__ import annotations

import math
import os
import shlex
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from plan import CMAKE_INCLUDE, Plan
from steps import BuildError
from tools import build_tools

_CORE_MINUTES = 6  # of compiling: measured with GCC 12 on a server's cores at about 2 GHz
_BYTES_PER_JOB = 1 << 30  # what the largest of llama.cpp's files takes to compile, rounded up


@dataclass(frozen=True)
class Wheel:
    """A wheel in the cache; ``seconds`` is how long it took to build, None where it was there."""

    path: Path
    seconds: float | None


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """``TOKENSTREAM_WHEEL_CACHE``, else ``tokenstream/wheels`` in the user's cache folder."""
    named = environment.get("TOKENSTREAM_WHEEL_CACHE")
    if named:
        return Path(named).expanduser().resolve()
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser().resolve() / "tokenstream/wheels"


def obtain(folder: Path, build: Callable[[Path], None], *, rebuild: bool = False) -> Wheel:
    """The wheel kept in ``folder``, or a new one.

    Args:
        folder: The place of one plan's wheel in the cache.
        build: Puts one wheel into the folder it is given, or raises BuildError.
        rebuild: Build even where a sound wheel is there.

    Raises:
        BuildError: The build fails, or the cache cannot be written.
    """
    kept = None if rebuild else _sound_wheel(folder)
    if kept:
        return Wheel(kept, None)
    started = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside its final place, so that it gets there in one rename: whole or not at all.
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as scratch:
            build(Path(scratch))
            fresh = _sound_wheel(Path(scratch))
            if not fresh:
                raise BuildError(f"the build left no readable wheel; its log is {folder / 'build.log'}")
            path = fresh.replace(folder / fresh.name)
    except OSError as error:
        raise BuildError(
            f"cannot keep the library in {folder}: {error}. TOKENSTREAM_WHEEL_CACHE names another place"
        ) from error
    return Wheel(path, time.monotonic() - started)


def _sound_wheel(folder: Path) -> Path | None:
    """A wheel in ``folder`` all of whose files have their checksums."""
    for path in folder.glob("*.whl"):
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is None:
                    return path
        except (OSError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error):
            continue  # damaged: as good as none, and replaced by the build
    return None


@dataclass(frozen=True)
class Builder:
    """Compiles llama-cpp-python with pip, in an environment made for that and thrown away after.

    Attributes:
        plan: What to build.
        requirements: The folder with ``build.txt`` (what compiles) and ``native.txt`` (what is compiled).
        log: The file that gets pip's and the compilers' output.
    """

    plan: Plan
    requirements: Path
    log: Path

    def __call__(self, destination: Path) -> None:
        """Build one wheel into ``destination``.

        Raises:
            BuildError: A step fails.
            OSError: The log cannot be written.
        """
        jobs = parallel_jobs()
        include = f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={CMAKE_INCLUDE}"
        with build_tools(self.requirements, self.plan.toolchain, self.log) as tools:
            tools.pip(
                "Compiling llama.cpp for this CPU",
                *("wheel", "--verbose", "--no-build-isolation", "--no-deps", "--no-cache-dir"),
                *("--no-binary", "llama-cpp-python", "--require-hashes"),
                *("-r", str(self.requirements / "native.txt"), "--wheel-dir", str(destination)),
                minutes=math.ceil(_CORE_MINUTES / jobs),
                CMAKE_ARGS=shlex.join([*self.plan.cmake_args, include]),
                CMAKE_BUILD_PARALLEL_LEVEL=str(jobs),
            )


def parallel_jobs(environment: Mapping[str, str] = os.environ) -> int:
    """Compilers to run at once: CMAKE_BUILD_PARALLEL_LEVEL, else as many as cores and memory allow.

    Raises:
        BuildError: CMAKE_BUILD_PARALLEL_LEVEL is not a number above 0.
    """
    named = environment.get("CMAKE_BUILD_PARALLEL_LEVEL", "")
    if named:
        if not named.isdecimal() or int(named) < 1:
            raise BuildError(
                f"CMAKE_BUILD_PARALLEL_LEVEL={named}: should be a number of compilers, 1 or more"
            )
        return int(named)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory // _BYTES_PER_JOB))
