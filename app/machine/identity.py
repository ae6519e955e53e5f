"""Identity of a model and of the native library, determined without loading either."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger("tokenstream.preflight")

# Folder of another build of the library; also read by llama_cpp.
LIBRARY_VARIABLE = "LLAMA_CPP_LIB_PATH"
MANIFEST = Path(sys.prefix) / "native-build.json"  # written by native/build.py
CPUINFO = Path("/proc/cpuinfo")


def identity(model_path: Path) -> str:
    """Digest of model files and native library. Together with tokens, these determine the KV cache."""
    facts = [
        [_fingerprint(path) for path in [*library_files(), *model_files(model_path)]],
        manifest().get("key"),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def check_key(model_path: Path | None, n_gpu_layers: int, main_gpu: int, matmul: bool) -> str:
    """Digest of all conditions of a test decode on this machine. ``model_path`` None: library only."""
    processor = cpu()
    facts = {
        "library": [_fingerprint(path) for path in library_files()],
        "manifest": manifest(),
        "cpu": [
            platform.machine(),
            processor.get("model name"),
            sorted(cpu_flags(processor)),
        ],
        "kernel": platform.release(),
        "model": [_fingerprint(part) for part in model_files(model_path)] if model_path else None,
        "gpu": [n_gpu_layers, main_gpu],
        "matmul": matmul,
        "linker": [os.environ.get(name) for name in ("LD_LIBRARY_PATH", "LD_PRELOAD")],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _fingerprint(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def library_files() -> list[Path]:
    """The native libraries of llama_cpp, found without importing it."""
    folder = os.environ.get(LIBRARY_VARIABLE)
    if folder is None:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            return []  # the test decode reports this
        folder = str(Path(spec.origin).parent / "lib")
    return sorted(path for path in Path(folder).resolve().glob("*") if path.is_file())


def model_files(model_path: Path) -> list[Path]:
    """The files of a model. For a split model (``-00001-of-00003.gguf``): all parts that exist."""
    split = re.fullmatch(r"(.*-)\d{5}(-of-\d{5}\.gguf)", model_path.name)
    if not split:
        return [model_path]
    pattern = re.compile(f"{re.escape(split[1])}\\d{{5}}{re.escape(split[2])}")
    return sorted(path for path in model_path.parent.iterdir() if pattern.fullmatch(path.name))


def own_manifest() -> Path | None:
    """The manifest in the folder LLAMA_CPP_LIB_PATH, if it has one."""
    folder = os.environ.get(LIBRARY_VARIABLE)
    path = Path(folder or "") / MANIFEST.name
    return path if folder and path.exists() else None


def manifest() -> dict[str, Any]:
    """The build manifest of native/build.py; empty for other libraries."""
    path = own_manifest() or MANIFEST
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.debug("cannot read %s: %s", path, error)
        return {}
    return facts if isinstance(facts, dict) else {}


def cpu() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty on systems without it."""
    try:
        first = CPUINFO.read_text(encoding="utf-8", errors="replace").strip().partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_flags(processor: Mapping[str, str]) -> set[str]:
    """The instruction sets of a processor of /proc/cpuinfo, on x86-64 or ARM."""
    return set((processor.get("flags") or processor.get("Features", "")).split())
