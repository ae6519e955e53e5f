"""Build llama-cpp-python's wheel once per plan, and cache it.

pip's cache ignores build flags and is disabled. The key of this cache covers all inputs of the build.
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

_CORE_MINUTES = 6  # compile time on one core; measured with GCC 12 at about 2 GHz
_BYTES_PER_JOB = 1 << 30  # peak memory of a compiler with llama.cpp's largest file, rounded up


@dataclass(frozen=True)
class Wheel:
    """A wheel in the cache; ``seconds``: build time, None if it was cached."""

    path: Path
    seconds: float | None


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """TOKENSTREAM_WHEEL_CACHE, else ``tokenstream/wheels`` in the user's cache folder."""
    named = environment.get("TOKENSTREAM_WHEEL_CACHE")
    if named:
        return Path(named).expanduser().resolve()
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser().resolve() / "tokenstream/wheels"


def obtain(folder: Path, build: Callable[[Path], None], *, rebuild: bool = False) -> Wheel:
    """Return the cached wheel, or build it.

    Args:
        folder: Cache folder of the plan.
        build: Writes a wheel into the given folder, or raises BuildError.
        rebuild: Build even if a sound wheel is cached.

    Raises:
        BuildError: The build fails, or the cache cannot be written.
    """
    kept = None if rebuild else _sound_wheel(folder)
    if kept:
        return Wheel(kept, None)
    started = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # On the same file system, so that the rename is atomic.
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as scratch:
            build(Path(scratch))
            fresh = _sound_wheel(Path(scratch))
            if not fresh:
                raise BuildError(f"the build produced no readable wheel; see {folder / 'build.log'}")
            path = fresh.replace(folder / fresh.name)
    except OSError as error:
        raise BuildError(
            f"cannot write the wheel cache {folder}: {error}. Set TOKENSTREAM_WHEEL_CACHE to another folder"
        ) from error
    return Wheel(path, time.monotonic() - started)


def _sound_wheel(folder: Path) -> Path | None:
    """A wheel in ``folder`` with valid checksums, or None."""
    for path in folder.glob("*.whl"):
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is None:
                    return path
        except (OSError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error):
            continue  # damaged: the build replaces it
    return None


@dataclass(frozen=True)
class Builder:
    """Compiles llama-cpp-python with pip in a temporary environment.

    Attributes:
        plan: The build plan.
        requirements: Folder with ``build.txt`` (build tools) and ``native.txt`` (llama-cpp-python).
        log: Output of pip and the compilers.
        platform: Python's name of the platform of the wheel; empty: this one.
    """

    plan: Plan
    requirements: Path
    log: Path
    platform: str = ""

    def __call__(self, destination: Path) -> None:
        """Build a wheel in ``destination``.

        Raises:
            BuildError: A step fails.
            OSError: The log cannot be written.
        """
        jobs = parallel_jobs()
        include = f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={CMAKE_INCLUDE}"
        with build_tools(self.requirements, self.plan.toolchain, self.log) as tools:
            tools.pip(
                f"Compiling llama.cpp for {self.platform or 'this CPU'}",
                *("wheel", "--verbose", "--no-build-isolation", "--no-deps", "--no-cache-dir"),
                *("--no-binary", "llama-cpp-python", "--require-hashes"),
                *("-r", str(self.requirements / "native.txt"), "--wheel-dir", str(destination)),
                minutes=math.ceil(_CORE_MINUTES / jobs),
                CMAKE_ARGS=shlex.join([*self.plan.cmake_args, include]),
                CMAKE_BUILD_PARALLEL_LEVEL=str(jobs),
                # Read by sysconfig.get_platform().
                **({"_PYTHON_HOST_PLATFORM": self.platform} if self.platform else {}),
            )


def parallel_jobs(environment: Mapping[str, str] = os.environ) -> int:
    """Number of concurrent compilers: CMAKE_BUILD_PARALLEL_LEVEL, else limited by cores and memory.

    Raises:
        BuildError: CMAKE_BUILD_PARALLEL_LEVEL is not a positive integer.
    """
    named = environment.get("CMAKE_BUILD_PARALLEL_LEVEL", "")
    if named:
        if not named.isdecimal() or int(named) < 1:
            raise BuildError(f"CMAKE_BUILD_PARALLEL_LEVEL={named}: must be an integer, 1 or more")
        return int(named)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory // _BYTES_PER_JOB))
