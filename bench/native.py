"""What the bench takes from ``native/``, a folder of scripts whose modules go by their bare names."""

from __future__ import annotations

import sys
from pathlib import Path

from app.config.settings import ROOT

sys.path.insert(0, str(ROOT / "native"))

import cpu
from compilers import NoCompilerError, Toolchain, find_toolchain
from plan import CMAKE_INCLUDE, PAUSE_HEADER, BuildFlagsError
from probe import AMX_HEADER
from steps import BuildError
from tools import BuildTools, build_tools
from wheels import cache_folder, parallel_jobs

__all__ = [
    "AMX_HEADER",
    "BUILD_ERRORS",
    "CACHE",
    "CMAKE_INCLUDE",
    "PAUSE_HEADER",
    "BuildError",
    "BuildTools",
    "Toolchain",
    "build_tools",
    "cpu",
    "find_toolchain",
    "parallel_jobs",
]

# All that keeps a peer from being built; the messages are for the user.
BUILD_ERRORS = (BuildError, BuildFlagsError, NoCompilerError)

# Where peers and written models are kept, beside the wheels.
CACHE: Path = cache_folder().parent
