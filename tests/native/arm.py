"""A compiler for ARM CPUs, and an emulator if this CPU is another one."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cpu
from compilers import Toolchain

from tests.native.native_library import CALLS_FROM_PIPE, EmulatedLibrary, compile_library, compiled

CROSS_TOOLS = "an ARM CPU with the instructions, or Debian's g++-aarch64-linux-gnu and qemu-user"
_COMPILER, _EMULATOR, _ROOT = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"


@dataclass(frozen=True)
class Arm:
    """
    Attributes:
        features: Flags of /proc/cpuinfo; None: the emulator has all.
    """

    compiler: tuple[str, ...]
    emulator: tuple[str, ...]
    features: frozenset[str] | None

    def lacks(self, features: Iterable[str]) -> bool:
        return self.features is not None and not self.features.issuperset(features)

    def load(self, source: Path, flags: Iterable[str], folder: Path) -> EmulatedLibrary:
        program = compiled([*self.compiler, "-std=c++17", str(CALLS_FROM_PIPE), "-ldl"], folder)
        library = compile_library(self.compiler, source, flags, folder)
        return EmulatedLibrary(self.emulator, program, library)


def find_arm(toolchain: Toolchain) -> Arm | None:
    if platform.machine() in ("aarch64", "arm64"):
        return Arm(toolchain.cxx.command, (), frozenset(cpu.fields().get("Features", "").split()))
    if shutil.which(_COMPILER) and shutil.which(_EMULATOR):
        return Arm((_COMPILER,), (_EMULATOR, "-cpu", "max", "-L", _ROOT), None)
    return None
