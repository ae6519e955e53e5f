"""What is to be built: CMake's arguments, and the key under which the wheel is kept."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cpu
from compilers import Toolchain
from probe import AMX_HEADER, HERE, INSTRUCTION_SETS, Findings

CMAKE_INCLUDE = HERE / "llama_cpp.cmake"
PAUSE_HEADER = HERE / "yielding_pause.h"
_SOURCES = (HERE / "exports.cpp", HERE / "flash_attention.cpp", HERE / "attention_kernel.h")

# OpenMP keeps a team of threads per calling thread: as soon as a second one has decoded, the teams outnumber
# the cores and every decode is several times slower. LLAVA is for pictures, and this serves text. Whether
# ccache is installed must not matter.
_ALWAYS = ("-DGGML_OPENMP=OFF", "-DGGML_CCACHE=OFF", "-DLLAVA_BUILD=OFF")

# Read by CMake beside its arguments, with all that begins with CMAKE_.
_READ_BY_CMAKE = (
    *("CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDACXX", "CUDAFLAGS", "CUDAHOSTCXX", "HIPCXX", "HIPFLAGS"),
    *("ARCHFLAGS", "MACOSX_DEPLOYMENT_TARGET"),
)
_WITHOUT_EFFECT = ("CMAKE_ARGS", "CMAKE_BUILD_PARALLEL_LEVEL")


class BuildFlagsError(ValueError):
    """LLAMA_BUILD_FLAGS cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True)
class Plan:
    """One build of llama-cpp-python.

    Attributes:
        version: Of llama-cpp-python.
        source: The pinned requirement, with its hash.
        cmake_args: Without paths of this machine.
        instruction_sets: The sets that the library will use, oldest first; empty where llama.cpp chooses.
        repaired_tile_loadconfig: Whether AMX_HEADER is forced into the C++ sources.
        toolchain: The compilers.
        build_environment: What else CMake reads from the environment.
        cpu_identity: Of the CPU where llama.cpp fits the library to it by itself, else "".
    """

    version: str
    source: str
    cmake_args: tuple[str, ...]
    instruction_sets: tuple[str, ...]
    repaired_tile_loadconfig: bool
    toolchain: Toolchain
    build_environment: tuple[tuple[str, str], ...]
    cpu_identity: str

    @property
    def key(self) -> str:
        """``<version>-<hash>``: equal keys mean interchangeable wheels, wherever this folder lies."""
        contents = {
            "source": self.source,
            "cmake_args": self.cmake_args,
            "headers": [path.read_text() for path in self.forced_files()],
            "compilers": [[c.name, c.version] for c in (self.toolchain.c, self.toolchain.cxx)],
            "environment": self.build_environment,
            "cpu": self.cpu_identity,
            "platform": [sysconfig.get_platform(), *platform.libc_ver()],
        }
        digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
        return f"{self.version}-{digest[:16]}"

    def forced_files(self) -> tuple[Path, ...]:
        """The files of this folder that become part of the build."""
        always = (CMAKE_INCLUDE, PAUSE_HEADER, *_SOURCES)
        return (*always, AMX_HEADER) if self.repaired_tile_loadconfig else always


def make_plan(
    requirements: Path, toolchain: Toolchain, findings: Findings, environment: Mapping[str, str] = os.environ
) -> Plan:
    """Turn what the probes found into a build.

    ``LLAMA_BUILD_FLAGS`` holds CMake definitions (``-DNAME=VALUE``), which go last and so win, option by
    option, over what was probed: ``-DGGML_CUDA=ON`` adds a GPU to the library for this CPU,
    ``-DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF`` leaves AMX out, and ``-DGGML_NATIVE=ON`` goes back to
    llama.cpp's ``-march=native``. OpenMP stays off unless they say ``-DGGML_OPENMP=ON``.

    Raises:
        BuildFlagsError: LLAMA_BUILD_FLAGS holds something else.
        ValueError: ``requirements`` does not pin llama-cpp-python.
    """
    source = requirements.read_text()
    pinned = re.search(r"^llama[-_]cpp[-_]python==([\w.]+)", source, re.MULTILINE)
    if not pinned:
        raise ValueError(f"{requirements} does not pin llama-cpp-python")
    wanted = _definitions(environment.get("LLAMA_BUILD_FLAGS", ""))
    chosen = _chosen(findings)
    effective = {**_options(chosen), **{name: _is_on(value) for name, value in wanted.items()}}
    probed = not findings.unprobed
    native = _is_on(wanted.get("GGML_NATIVE", "OFF" if probed else "ON"))
    arguments = (
        [f"-D{name}={'ON' if on else 'OFF'}" for name, on in _options(chosen).items()] if probed else []
    )
    sets = [
        name for name, row in INSTRUCTION_SETS.items() if all(effective[f"GGML_{o}"] for o in row.options)
    ]
    if native:
        sets = list(findings.usable)
    # "unknown" too: AMX is on then only because somebody names it, for another machine than this one.
    repaired = "AMX" in sets and findings.amx_header != "sound"
    arguments += [*_ALWAYS, *(["-DREPAIR_TILE_LOADCONFIG=ON"] if repaired else [])]
    arguments += [f"-D{name}={value}" for name, value in wanted.items()]
    return Plan(
        version=pinned[1],
        source=source,
        cmake_args=tuple(arguments),
        instruction_sets=tuple(sets),
        repaired_tile_loadconfig=repaired,
        toolchain=toolchain,
        build_environment=tuple(sorted(pair for pair in environment.items() if _is_read_by_cmake(pair[0]))),
        cpu_identity=cpu.identity() if native else "",
    )


def _is_read_by_cmake(variable: str) -> bool:
    return variable not in _WITHOUT_EFFECT and (variable in _READ_BY_CMAKE or variable.startswith("CMAKE_"))


def _chosen(findings: Findings) -> tuple[str, ...]:
    """The sets to switch on: all usable ones, but AVX-VNNI only in place of AVX-512 VNNI.

    ggml has the same kernels for both and prefers AVX-512's. Beside it AVX-VNNI changes only how the same
    instructions are encoded, and the library would no longer run on CPUs that have AVX-512 VNNI alone (Ice
    Lake, Zen 4).
    """
    usable = findings.usable
    return tuple(name for name in usable if not (name == "AVX_VNNI" and "AVX512_VNNI" in usable))


def _options(chosen: tuple[str, ...]) -> dict[str, bool]:
    """ggml's options, every one named, because several are on by default."""
    options = {"GGML_NATIVE": False}
    for name, row in INSTRUCTION_SETS.items():
        options.update({f"GGML_{option}": name in chosen for option in row.options})
    return {**options, "GGML_AMX_BF16": False}  # no kernel of ggml uses it


def _definitions(flags: str) -> dict[str, str]:
    """The definitions of LLAMA_BUILD_FLAGS by name, the type of ``-DNAME:TYPE=VALUE`` left off."""
    try:
        words = shlex.split(flags)
    except ValueError as error:
        raise BuildFlagsError(f"LLAMA_BUILD_FLAGS={flags}: {error}") from None
    definitions = {}
    for word in words:
        match = re.fullmatch(r"-D([\w.+/-]+)(?::[A-Z]+)?=(.*)", word, re.DOTALL)
        if not match:
            raise BuildFlagsError(
                f"LLAMA_BUILD_FLAGS: {word!r} is not a CMake definition such as -DGGML_CUDA=ON "
                "(flags of the compiler go into CFLAGS and CXXFLAGS)"
            )
        definitions[match[1]] = match[2]
    return definitions


def _is_on(value: str) -> bool:
    """Whether CMake takes ``value`` for true."""
    return value.upper() not in ("", "0", "OFF", "NO", "FALSE", "N", "IGNORE", "NOTFOUND")
