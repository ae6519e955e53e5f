"""What the bench takes from ``native/``, a folder of scripts whose modules go by their bare names."""

from __future__ import annotations

import sys
from pathlib import Path

from app.settings import ROOT

sys.path.insert(0, str(ROOT / "native"))

import cpu
from compilers import NoCompilerError, Toolchain, find_toolchain
from plan import CMAKE_INCLUDE, BuildFlagsError, make_plan
from probe import probe
from steps import BuildError
from tools import BuildTools, build_tools
from wheels import cache_folder, parallel_jobs

__all__ = [
    "BUILD_ERRORS",
    "CACHE",
    "CMAKE_INCLUDE",
    "BuildError",
    "BuildTools",
    "Toolchain",
    "build_tools",
    "cpu",
    "find_toolchain",
    "make_plan",
    "parallel_jobs",
    "probe",
]

# All that keeps a peer from being built; the messages are for the user.
BUILD_ERRORS = (BuildError, BuildFlagsError, NoCompilerError)

# Where peers and written models are kept, beside the wheels.
CACHE: Path = cache_folder().parent
