"""One decode in a child process before the server binds: a native fault becomes a message, not a dead server.

A library that was built for another CPU, or with a broken compiler, dies of a signal in its first
matrix product, and takes the process with it. Here a child dies in the server's stead.

This module must not import ``llama.py`` at its top: loading a broken library may be what kills.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import json
import logging
import os
import platform
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from app.machine.folders import cache_folder

logger = logging.getLogger("tokenstream.preflight")

MANIFEST = Path(sys.prefix) / "native-build.json"  # written by native/build.py
CPUINFO = Path("/proc/cpuinfo")
REBUILD = "make rebuild"

_ROOT = Path(__file__).resolve().parents[2]
_STARTING_TIME = 120.0  # seconds, and on top of them:
_SLOWEST_DISK = 20e6  # bytes of the model read a second

# Exit statuses of the child beside 0; Python itself uses 1 and 2.
_MODEL_REFUSED, _LIBRARY_REFUSED, _DECODE_FAILED = 10, 11, 12


class NativeLibraryError(Exception):
    """The native library does not work on this machine; the message names the likely cause and the cure."""


def check_library() -> None:
    """Load the native library in a child process, unless that went well before.

    To be called before anything imports ``app.engine.llama``: the library's static constructors run
    on loading, compiled for the same instruction sets as the rest.

    Raises:
        NativeLibraryError: The library cannot be loaded, or dies.
    """
    marker = _cache_folder() / _key(None, 0, 0)
    if not marker.exists():
        child = _run_child([], _STARTING_TIME, what="loading it")
        _judge(child, "while it was loaded", uses_gpu=False)
        _remember(marker)


def check(model_path: Path, *, n_threads: int, n_gpu_layers: int, main_gpu: int = 0) -> None:
    """Decode a few tokens of the model in a child process, unless that went well before.

    A success is remembered for the same library, CPU, kernel, model file and GPU layers, so that a
    large model is not loaded twice at every start.

    Args:
        model_path: A GGUF, of a split model its first part.
        n_threads: Threads that compute.
        n_gpu_layers: Layers on the GPU; -1 is all.
        main_gpu: The GPU that gets them.

    Raises:
        NativeLibraryError: The library cannot be loaded, dies, hangs or cannot compute.
        app.engine.llama.ModelLoadError: The library works and refuses the model.
        OSError: The model file cannot be read.
    """
    model_path = model_path.resolve()
    marker = _cache_folder() / _key(model_path, n_gpu_layers, main_gpu)
    if marker.exists():
        return
    timeout = _STARTING_TIME + sum(part.stat().st_size for part in _parts(model_path)) / _SLOWEST_DISK
    what = f"a test decode of {model_path}"
    arguments = [str(model_path), str(n_threads), str(n_gpu_layers), str(main_gpu)]
    child = _run_child(arguments, timeout, what=what)
    _judge(child, f"in {what}", uses_gpu=n_gpu_layers != 0)
    _remember(marker)


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
            f"library hangs; in that case: {REBUILD}"
        ) from None


def _remember(marker: Path) -> None:
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        logger.debug("the success is not remembered: %s", error)


def _judge(child: subprocess.CompletedProcess[str], when: str, *, uses_gpu: bool) -> None:
    if child.returncode == 0:
        return
    reason = child.stdout.strip() or _last_words(child.stderr)
    if child.returncode == _MODEL_REFUSED:
        from app.engine.llama import ModelLoadError  # the child has loaded the library without harm

        raise ModelLoadError(reason)
    if child.returncode == _LIBRARY_REFUSED:
        raise NativeLibraryError(
            f"the native library cannot be loaded ({reason}). Build it for this machine: {REBUILD}"
        )
    if child.returncode == -signal.SIGKILL:
        raise NativeLibraryError(
            f"the process was killed from outside {when}, most likely because memory ran out: "
            "choose a smaller model or a smaller quantization of it, or give this process more memory"
        )
    if child.returncode < 0:
        raise NativeLibraryError(_explain_death(-child.returncode, child.stderr, when, uses_gpu=uses_gpu))
    raise NativeLibraryError(f"the native library failed {when}: {reason}. If the model is sound: {REBUILD}")


# --- the child


def main(arguments: Sequence[str] | None = None) -> int:
    """The child: load the library, and decode once if a model is given.

    The exit status and one line on stdout tell how it went.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("model_path", type=Path, nargs="?")
    for number in ("n_threads", "n_gpu_layers", "main_gpu"):
        parser.add_argument(number, type=int, nargs="?")
    chosen = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would be as large as the model
    try:
        from app.engine import llama
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        print(" ".join(str(error).split()))
        return _LIBRARY_REFUSED
    if chosen.model_path is None:
        return 0
    try:
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


def _child_environment() -> dict[str, str]:
    python_path = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # GGML_NO_BACKTRACE: ggml's own starts a debugger when it aborts.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(python_path), "GGML_NO_BACKTRACE": "1"}


# --- what killed it


def _explain_death(number: int, stderr: str, when: str, *, uses_gpu: bool) -> str:
    name = f"{signal.Signals(number).name} ({(signal.strsignal(number) or 'no description').lower()})"
    sentences = [f"the native library died of {name} {when}."]
    if number == signal.SIGABRT:
        sentences.append(f"Its last words: {_last_words(stderr)}.")
    sentences.append(_suspect(number, _manifest()))
    if uses_gpu:
        sentences.append("If the GPU is at fault, MODEL_GPU_LAYERS=0 leaves it out.")
    return " ".join(sentences)


def _suspect(number: int, manifest: dict[str, Any]) -> str:
    """Which instruction set is at fault, and what to do."""
    rebuild = f"Build it for this machine: {REBUILD}."
    other_folder = os.environ.get("LLAMA_CPP_LIB_PATH")
    if other_folder:
        return f"It comes from LLAMA_CPP_LIB_PATH={other_folder} and may be built for another CPU: unset it."
    sets: dict[str, list[str]] = manifest.get("cpuinfo_flags", {})
    if not sets:
        return f"It may have been built for another CPU. {rebuild}"
    cpu = _cpu()
    flags = cpu.get("flags", "").split()
    missing = [name for name, needed in sets.items() if flags and not set(needed) <= set(flags)]
    built_with = f"It was built with {_listed(sets, 'and')}"
    if missing:
        model = cpu.get("model name", "of no name")
        return f"{built_with}; this CPU ({model}) has no {_listed(missing, 'or')}. {rebuild}"
    if "AMX" in sets and not _kernel_grants_amx():
        return f"{built_with}; the kernel of this machine does not grant AMX. {rebuild}"
    all_there = f"{built_with}{', and this CPU has them all' if flags else ''}"
    if "AMX" in sets and number in (signal.SIGSEGV, signal.SIGILL):
        without_amx = f'{REBUILD} LLAMA_BUILD_FLAGS="-DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF"'
        return (
            f"{all_there}; the likely one at fault is AMX, which some compilers get wrong. {rebuild} "
            f"Without AMX: {without_amx}."
        )
    return f"{all_there}; the likely one at fault is the newest, {list(sets)[-1]}. {rebuild}"


def _listed(names: Iterable[str], conjunction: str) -> str:
    *first, last = names
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def _kernel_grants_amx() -> bool:
    """Ask for the tile registers, as ggml does; only Linux on x86-64 wants to be asked."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return True
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)


def _last_words(stderr: str) -> str:
    """The line of a child's stderr that says most: ggml's assertion, else the last one."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return next((line for line in lines if "GGML_ASSERT" in line), lines[-1] if lines else "it said nothing")


# --- what a success holds for


def _cache_folder() -> Path:
    return cache_folder() / "preflight"


def identity(model_path: Path) -> str:
    """What a model's KV depends on beside the tokens: the model's files, and the library that computes."""
    facts = [
        [_fingerprint(path) for path in [*_library_files(), *_parts(model_path)]],
        _manifest().get("key"),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _key(model_path: Path | None, n_gpu_layers: int, main_gpu: int) -> str:
    cpu = _cpu()
    facts = {
        "library": [_fingerprint(path) for path in _library_files()],
        "manifest": _manifest(),
        "cpu": [platform.machine(), cpu.get("model name"), cpu.get("flags") or cpu.get("Features")],
        "kernel": platform.release(),
        "model": [_fingerprint(part) for part in _parts(model_path)] if model_path else None,
        "gpu": [n_gpu_layers, main_gpu],
        "linker": [os.environ.get(name) for name in ("LD_LIBRARY_PATH", "LD_PRELOAD")],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _fingerprint(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def _library_files() -> list[Path]:
    """The native libraries that ``import llama_cpp`` would load, found without importing it."""
    folder = os.environ.get("LLAMA_CPP_LIB_PATH")
    if folder is None:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            return []  # the child says so
        folder = str(Path(spec.origin).parent / "lib")
    return sorted(path for path in Path(folder).resolve().glob("*") if path.is_file())


def _parts(model_path: Path) -> list[Path]:
    """All files of a model: of a split one (``-00001-of-00003.gguf``) every part that is there."""
    split = re.fullmatch(r"(.*-)\d{5}(-of-\d{5}\.gguf)", model_path.name)
    if not split:
        return [model_path]
    pattern = re.compile(f"{re.escape(split[1])}\\d{{5}}{re.escape(split[2])}")
    return sorted(path for path in model_path.parent.iterdir() if pattern.fullmatch(path.name))


def _manifest() -> dict[str, Any]:
    """What the library was built for; empty where it was not built by native/build.py."""
    try:
        manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.debug("%s cannot be read: %s", MANIFEST, error)
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _cpu() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty on systems that have none."""
    try:
        first = CPUINFO.read_text(encoding="utf-8", errors="replace").strip().partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


if __name__ == "__main__":
    sys.exit(main())
