"""A test decode in a child process at startup: a native fault becomes an error message.

A library built for another CPU, or by a broken compiler, crashes in its first matrix product. Here the crash
ends a child process, not the server.

This module must not import ``app.engine.llama`` at module level: loading a broken library may crash.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import platform
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from app.config.errors import UserError
from app.machine.folders import cache_folder
from app.machine.identity import (
    LIBRARY_VARIABLE,
    check_key,
    cpu,
    cpu_flags,
    library_files,
    manifest,
    model_files,
    own_manifest,
)
from app.machine.installation import INSTALL, REBUILD, ROOT, rebuild_with

logger = logging.getLogger("tokenstream.preflight")

# Time limit of the child: a constant, in seconds, plus the time to read the model from a slow disk, in
# bytes/s.
_STARTING_TIME = 120.0
_SLOWEST_DISK = 20e6

# Exit statuses of the child besides 0. Python uses 1 and 2.
_MODEL_REFUSED, _LIBRARY_REFUSED, _DECODE_FAILED = 10, 11, 12


class NativeLibraryError(UserError):
    """The native library does not work on this machine. The message has a likely cause and a remedy."""


def check_library() -> None:
    """Load the native library in a child process, unless an earlier check succeeded.

    Call it before importing ``app.engine.llama``: loading the library runs static constructors with the same
    instruction sets.

    Raises:
        NativeLibraryError: The library is missing, cannot be loaded, or crashes.
    """
    if not library_files():
        raise NativeLibraryError(
            "llama.cpp is not compiled for this CPU yet. "
            f"Run once: {INSTALL} (some minutes; needs a C++ compiler)"
        )
    marker = _success_marker(None, 0, 0, matmul=False)
    if not marker.exists():
        child = _run_child([], _STARTING_TIME, what="loading the native library")
        _judge(child, "during loading", uses_gpu=False)
        _record_success(marker)


def check(
    model_path: Path, *, n_threads: int, n_gpu_layers: int, main_gpu: int = 0, matmul: bool = True
) -> None:
    """Decode a few tokens of the model in a child process, unless an earlier check succeeded.

    A success is recorded per library, CPU, kernel, model file and GPU layers. Otherwise large models would be
    loaded twice at every start.

    Args:
        model_path: A GGUF file; for a split model its first part.
        n_threads: Compute threads.
        n_gpu_layers: Layers on the GPU; -1 is all.
        main_gpu: Index of the GPU.
        matmul: Whether to use the matrix kernels of native/matmul.cpp.

    Raises:
        NativeLibraryError: The library cannot be loaded, crashes, hangs or fails to compute.
        app.engine.llama.ModelLoadError: The library works but rejects the model.
        OSError: The model file cannot be read.
    """
    model_path = model_path.resolve()
    marker = _success_marker(model_path, n_gpu_layers, main_gpu, matmul)
    if marker.exists():
        return
    timeout = _STARTING_TIME + sum(part.stat().st_size for part in model_files(model_path)) / _SLOWEST_DISK
    what = f"a test decode of {model_path}"
    arguments = [str(model_path), str(n_threads), str(n_gpu_layers), str(main_gpu), str(int(matmul))]
    child = _run_child(arguments, timeout, what=what)
    _judge(child, f"in {what}", uses_gpu=n_gpu_layers != 0)
    _record_success(marker)


def _success_marker(model_path: Path | None, n_gpu_layers: int, main_gpu: int, matmul: bool) -> Path:
    return cache_folder() / "preflight" / check_key(model_path, n_gpu_layers, main_gpu, matmul)


def _record_success(marker: Path) -> None:
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        logger.debug("cannot record the successful check: %s", error)


def _run_child(arguments: Sequence[str], timeout: float, *, what: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [sys.executable, "-m", "app.fit.preflight", *arguments],
            env=_child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NativeLibraryError(
            f"{what} did not end within {timeout / 60:.0f} minutes: the disk is very slow, or the native "
            f"library hangs. If it hangs: {REBUILD}"
        ) from None


def _judge(child: subprocess.CompletedProcess[str], when: str, *, uses_gpu: bool) -> None:
    if child.returncode == 0:
        return
    reason = child.stdout.strip() or _last_line(child.stderr)
    if child.returncode == _MODEL_REFUSED:
        from app.engine.llama import ModelLoadError  # the child has loaded the library safely

        raise ModelLoadError(reason)
    if child.returncode == _LIBRARY_REFUSED:
        raise NativeLibraryError(
            f"the native library cannot be loaded ({reason}). Build it for this machine: {REBUILD}"
        )
    if child.returncode == -signal.SIGKILL:
        raise NativeLibraryError(
            f"the process was killed {when}, most likely because memory ran out: "
            "choose a smaller model or a smaller quantization, or give the process more memory"
        )
    if child.returncode < 0:
        raise NativeLibraryError(_explain_crash(-child.returncode, child.stderr, when, uses_gpu=uses_gpu))
    raise NativeLibraryError(
        f"the native library failed {when}: {reason}. If the model file is intact: {REBUILD}"
    )


# --- the child


def main(arguments: Sequence[str] | None = None) -> int:
    """The child: load the library, and decode once if a model is given.

    Reports by its exit status and one line on stdout.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("model_path", type=Path, nargs="?")
    for number in ("n_threads", "n_gpu_layers", "main_gpu", "matmul"):
        parser.add_argument(number, type=int, nargs="?")
    chosen = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would be as large as the model
    _end_with_parent()
    try:
        from app.engine import llama
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        print(" ".join(str(error).split()))
        return _LIBRARY_REFUSED
    if chosen.model_path is None:
        return 0
    try:
        llama.start_matmul(enabled=bool(chosen.matmul))
        llama.smoke_decode(
            chosen.model_path,
            n_threads=chosen.n_threads,
            gpu_layers=chosen.n_gpu_layers,
            main_gpu=chosen.main_gpu,
        )
    except llama.ModelLoadError as error:
        print(error)
        return _MODEL_REFUSED
    except llama.DecodeError as error:
        print(error)
        return _DECODE_FAILED
    return 0


def _end_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends. Only Linux can."""
    if sys.platform == "linux":
        set_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_signal, signal.SIGKILL)


def _child_environment() -> dict[str, str]:
    python_path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # GGML_NO_BACKTRACE: otherwise ggml starts a debugger when it aborts.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(python_path), "GGML_NO_BACKTRACE": "1"}


# --- the cause of a crash


def _explain_crash(number: int, stderr: str, when: str, *, uses_gpu: bool) -> str:
    name = f"{signal.Signals(number).name} ({(signal.strsignal(number) or 'no description').lower()})"
    sentences = [f"the native library crashed with {name} {when}."]
    if number == signal.SIGABRT:
        sentences.append(f"Its last message: {_last_line(stderr)}.")
    sentences.append(_suspect(number, manifest()))
    if uses_gpu:
        sentences.append("To rule out the GPU: MODEL_GPU_LAYERS=0.")
    return " ".join(sentences)


def _suspect(number: int, build: dict[str, Any]) -> str:
    """Name the likely cause, such as an instruction set, and a remedy."""
    rebuild = f"Build it for this machine: {REBUILD}."
    other_folder = os.environ.get(LIBRARY_VARIABLE)
    if other_folder and own_manifest() is None:
        return f"It comes from LLAMA_CPP_LIB_PATH={other_folder} and may be built for another CPU: unset it."
    sets: dict[str, list[str]] = build.get("cpuinfo_flags", {})
    if not sets:
        return f"It may be built for another CPU. {rebuild}"
    processor = cpu()
    flags = cpu_flags(processor)
    missing = [name for name, needed in sets.items() if flags and not set(needed) <= flags]
    built_with = f"It is built with {_listed(sets, 'and')}"
    if missing:
        model = processor.get("model name", "of unknown model")
        return f"{built_with}; this CPU ({model}) has no {_listed(missing, 'or')}. {rebuild}"
    if "AMX" in sets and not kernel_permits_amx():
        return f"{built_with}; the kernel of this machine does not permit AMX. {rebuild}"
    all_present = f"{built_with}{', and this CPU supports all of them' if flags else ''}"
    if "AMX" in sets and number in (signal.SIGSEGV, signal.SIGILL):
        without_amx = rebuild_with("-DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF")
        return (
            f"{all_present}; the likely cause is AMX, which some compilers miscompile. {rebuild} "
            f"Without AMX: {without_amx}."
        )
    return f"{all_present}; the likely cause is the newest set, {list(sets)[-1]}. {rebuild}"


def _listed(names: Iterable[str], conjunction: str) -> str:
    *first, last = names
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def kernel_permits_amx() -> bool:
    """Request permission for the tile registers, as ggml does. Only Linux on x86-64 requires it."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return True
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


def _last_line(stderr: str) -> str:
    """The relevant line of the child's stderr: a ggml assertion, else the last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return next((line for line in lines if "GGML_ASSERT" in line), lines[-1] if lines else "none")


if __name__ == "__main__":
    sys.exit(main())
