"""A build plan: CMake arguments and the cache key of the wheel."""

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
_SOURCES = tuple(
    HERE / name
    for name in (
        *("exports.cpp", "sampling.cpp", "sampling.h", "logits_row.h"),
        *("row_operations.cpp", "flash_attention.cpp"),
        *("attention_kernel.h", "attention_tile.h", "attention_vectors.h"),
        *("passes.cpp", "passes.h", "fusion.h"),
        *("matmul.cpp", "matmul_weights.cpp", "matmul_weights.h", "matmul_kernel.h", "matmul_formats.h"),
        *("matmul_avx512.h", "matmul_avx2.h", "matmul_neon.h"),
    )
)

# OpenMP keeps a team of threads per calling thread. After decodes from a second thread, the teams outnumber
# the cores and each decode is several times slower. LLAVA (images) is unused. Without CCACHE=OFF the build
# would depend on whether ccache is installed.
_ALWAYS = ("-DGGML_OPENMP=OFF", "-DGGML_CCACHE=OFF", "-DLLAVA_BUILD=OFF")

# Environment variables read by CMake, besides those that start with CMAKE_.
_READ_BY_CMAKE = (
    *("CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDACXX", "CUDAFLAGS", "CUDAHOSTCXX", "HIPCXX", "HIPFLAGS"),
    *("ARCHFLAGS", "MACOSX_DEPLOYMENT_TARGET"),
)
_WITHOUT_EFFECT = ("CMAKE_ARGS", "CMAKE_BUILD_PARALLEL_LEVEL")


# Values of GPU, with ggml's option.
_GPU_OPTIONS = {"cuda": "GGML_CUDA", "vulkan": "GGML_VULKAN", "metal": "GGML_METAL"}


class BuildFlagsError(ValueError):
    """LLAMA_BUILD_FLAGS or GPU is invalid."""


@dataclass(frozen=True)
class Plan:
    """A build of llama-cpp-python.

    Attributes:
        version: Version of llama-cpp-python.
        source: Pinned requirement with its hash.
        cmake_args: CMake arguments, without paths of this machine.
        instruction_sets: Instruction sets of the library, oldest first; empty if llama.cpp chooses them.
        repaired_tile_loadconfig: Include AMX_HEADER in every C++ source.
        toolchain: The compilers.
        build_environment: Other environment variables read by CMake.
        cpu_identity: CPU identity if llama.cpp chooses the instruction sets, else "".
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
        """``<version>-<hash>``. Equal keys mean interchangeable wheels. Paths are not part of the key."""
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
        """Files of this folder that are compiled or included."""
        always = (CMAKE_INCLUDE, PAUSE_HEADER, *_SOURCES)
        return (*always, AMX_HEADER) if self.repaired_tile_loadconfig else always


def make_plan(
    requirements: Path, toolchain: Toolchain, findings: Findings, environment: Mapping[str, str] = os.environ
) -> Plan:
    """Derive a build from the probes' findings, GPU and LLAMA_BUILD_FLAGS.

    LLAMA_BUILD_FLAGS holds CMake definitions (``-DNAME=VALUE``). Each takes precedence over a probed one.

    Raises:
        BuildFlagsError: LLAMA_BUILD_FLAGS holds anything but CMake definitions, or GPU is unknown.
        ValueError: ``requirements`` does not pin llama-cpp-python.
    """
    source = requirements.read_text()
    pinned = re.search(r"^llama[-_]cpp[-_]python==([\w.]+)", source, re.MULTILINE)
    if not pinned:
        raise ValueError(f"{requirements} does not pin llama-cpp-python")
    wanted = _gpu(environment.get("GPU", "")) | _definitions(environment.get("LLAMA_BUILD_FLAGS", ""))
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
    # The finding is "unknown" if LLAMA_BUILD_FLAGS enables AMX on a machine without it.
    # Then the compiler's header may be wrong.
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


def _gpu(name: str) -> dict[str, str]:
    if not name:
        return {}
    if name.lower() not in _GPU_OPTIONS:
        raise BuildFlagsError(f"GPU={name}: should be one of {', '.join(_GPU_OPTIONS)}")
    return {_GPU_OPTIONS[name.lower()]: "ON"}


def _is_read_by_cmake(variable: str) -> bool:
    return variable not in _WITHOUT_EFFECT and (variable in _READ_BY_CMAKE or variable.startswith("CMAKE_"))


def _chosen(findings: Findings) -> tuple[str, ...]:
    """The usable sets, without AVX-VNNI if AVX-512 VNNI is usable.

    ggml has the same kernels for both and prefers AVX-512's. With both, only instruction encodings differ,
    and the library fails on CPUs without AVX-VNNI (Ice Lake, Zen 4).
    """
    usable = findings.usable
    return tuple(name for name in usable if not (name == "AVX_VNNI" and "AVX512_VNNI" in usable))


def _options(chosen: tuple[str, ...]) -> dict[str, bool]:
    """Values of all of ggml's options, because several are on by default."""
    options = {"GGML_NATIVE": False}
    for name, row in INSTRUCTION_SETS.items():
        options.update({f"GGML_{option}": name in chosen for option in row.options})
    return {**options, "GGML_AMX_BF16": False}  # ggml has no kernel for it


def _definitions(flags: str) -> dict[str, str]:
    """Parse LLAMA_BUILD_FLAGS; drops the type in ``-DNAME:TYPE=VALUE``."""
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
                "(compiler flags belong in CFLAGS and CXXFLAGS)"
            )
        definitions[match[1]] = match[2]
    return definitions


def _is_on(value: str) -> bool:
    """Whether CMake treats ``value`` as true."""
    return value.upper() not in ("", "0", "OFF", "NO", "FALSE", "N", "IGNORE", "NOTFOUND")
