"""Imports from ``native/``, a folder of scripts whose modules are imported by their bare names."""

from __future__ import annotations

import sys
from pathlib import Path

from app.machine.installation import ROOT

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

# Errors of building a peer. Their messages are for users.
BUILD_ERRORS = (BuildError, BuildFlagsError, NoCompilerError)

# Folder for peers and generated models, next to the wheels.
CACHE: Path = cache_folder().parent
