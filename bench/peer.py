"""Builds llama-server and other programs from the llama.cpp sources of the installed library.

    python -m bench.peer                 build both peers if necessary and print their paths

``same`` has the flags, compilers and forced headers of the installed library, so it runs the same kernels.
``pip`` has the flags of ``pip install llama-cpp-python`` without AMX, because common compilers
build AMX code that crashes.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from app.machine.installation import ROOT
from bench.native import (
    AMX_HEADER,
    BUILD_ERRORS,
    CACHE,
    CMAKE_INCLUDE,
    PAUSE_HEADER,
    BuildError,
    BuildTools,
    Toolchain,
    build_tools,
    cpu,
    find_toolchain,
    parallel_jobs,
)

REQUIREMENTS = ROOT / "requirements"
MANIFEST = Path(sys.prefix) / "native-build.json"
PEER_INCLUDE = ROOT / "bench" / "peer.cmake"
PROGRAMS = ("llama-server", "llama-bench", "llama-batched-bench")

_CORE_MINUTES = 14  # compile time of one core at about 2 GHz, with GCC 12

# Only the three programs, without web page, downloads, tests and examples; they run from any folder.
_PROGRAMS_ONLY = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON"),
    *("-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN"),
    *("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF"),
    *("-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_OPENSSL=OFF"),
)
# llama.cpp without our kernels.
_WITHOUT_OURS = ("-DTOKENSTREAM_ATTENTION=OFF", "-DTOKENSTREAM_MATMUL=OFF", "-DTOKENSTREAM_ROWS=OFF")
# -march=native follows these flags, but does not turn on features that they turn off.
_PIP_WITHOUT_AMX = (
    *("-DGGML_CCACHE=OFF", "-DCMAKE_C_FLAGS=-mno-amx-tile -mno-amx-int8"),
    "-DCMAKE_CXX_FLAGS=-mno-amx-tile -mno-amx-int8",
)


@dataclass(frozen=True)
class Peer:
    """One build of llama.cpp's programs.

    Attributes:
        name: ``same`` or ``pip``.
        folder: Folder of the programs and their libraries.
        flags: CMake definitions.
    """

    name: str
    folder: Path
    flags: tuple[str, ...]

    @property
    def server(self) -> Path:
        return self.folder / "llama-server"


def same_peer() -> Peer:
    """The peer with the flags of the installed library. Builds it if the cache has none (about 8 minutes).

    Raises:
        BuildError: The library is not installed, was built with another compiler, or the build fails.
        NoCompilerError: There is no compiler.
    """
    try:
        manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BuildError(f"{MANIFEST} does not exist; run: make install") from None
    toolchain = find_toolchain()
    if toolchain.cxx.version != manifest["compiler"]:
        raise BuildError(
            f"the library was built with {manifest['compiler']}, but the compiler is "
            f"{toolchain.cxx.version}; run: make rebuild"
        )
    flags = (*manifest["flags"], *_WITHOUT_OURS)
    forced = [CMAKE_INCLUDE, PAUSE_HEADER, PEER_INCLUDE]
    if manifest["repaired_tile_loadconfig"]:
        forced.append(AMX_HEADER)
    folder = _folder(toolchain, flags, [path.read_text() for path in forced])
    return _obtain(Peer("same", folder, flags), toolchain, (CMAKE_INCLUDE, PEER_INCLUDE))


def pip_peer() -> Peer:
    """The peer with pip's default flags, without AMX. Builds it if the cache has none.

    Raises:
        BuildError: The build fails.
        NoCompilerError: There is no compiler.
    """
    toolchain = find_toolchain()
    folder = _folder(toolchain, _PIP_WITHOUT_AMX, [])
    return _obtain(Peer("pip", folder, _PIP_WITHOUT_AMX), toolchain, ())


def _folder(toolchain: Toolchain, flags: tuple[str, ...], forced: list[str]) -> Path:
    """Folder of a build in the cache; its name is a hash of all inputs of the build."""
    source = (REQUIREMENTS / "native.txt").read_text()
    version = source.partition("==")[2].split()[0]
    compilers = [toolchain.c.version, toolchain.cxx.version]
    contents = [source, *flags, *_PROGRAMS_ONLY, *forced, *compilers, cpu.identity()]
    digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    return CACHE / "peers" / f"{version}-{digest[:16]}"


def _obtain(peer: Peer, toolchain: Toolchain, includes: tuple[Path, ...]) -> Peer:
    if peer.server.exists():
        return peer
    peer.folder.parent.mkdir(parents=True, exist_ok=True)
    log = peer.folder.parent / f"{peer.folder.name}.log"
    # A rename within one folder is atomic, so an interrupted build leaves no folder of that name.
    with (
        tempfile.TemporaryDirectory(prefix=".building-", dir=peer.folder.parent) as unfinished,
        build_tools(REQUIREMENTS, toolchain, log) as tools,
    ):
        _build(tools, Path(unfinished), [*peer.flags, *_PROGRAMS_ONLY], includes)
        (Path(unfinished) / "bin").replace(peer.folder)
    return peer


def _build(tools: BuildTools, folder: Path, flags: list[str], includes: tuple[Path, ...]) -> None:
    """Compile into the folder ``bin`` in ``folder``."""
    tools.pip(
        "Fetching llama.cpp's sources",
        *("download", "--no-build-isolation", "--no-deps", "--no-binary", "llama-cpp-python"),
        *("--require-hashes", "-r", str(REQUIREMENTS / "native.txt"), "--dest", str(tools.scratch)),
    )
    (archive,) = tools.scratch.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        sources.extractall(tools.scratch, filter="data")
    (llama_cpp,) = tools.scratch.glob("*/vendor/llama.cpp")
    if includes:
        flags = [*flags, f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={';'.join(map(str, includes))}"]
    tools.run("Configuring", "cmake", "-G", "Ninja", "-S", str(llama_cpp), "-B", str(folder), *flags)
    jobs = parallel_jobs()
    tools.run(
        "Compiling llama.cpp's programs",
        *("cmake", "--build", str(folder), "--parallel", str(jobs), "--target", *PROGRAMS),
        minutes=math.ceil(_CORE_MINUTES / jobs),
    )


if __name__ == "__main__":
    try:
        for obtained in (same_peer(), pip_peer()):
            print(f"{obtained.name:5} {obtained.server}")
    except BUILD_ERRORS as error:
        sys.exit(f"error: {error}")
