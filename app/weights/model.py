"""Model settings → a checked GGUF file on this disk."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from app.config.settings import Settings
from app.engine.llama.gguf import ModelFileError, read_header
from app.machine.cores import physical_cores
from app.machine.installation import DEFAULT_PACKAGE, INSTALL, bundled_model
from app.measure.measurer import Trial
from app.weights import conversion
from app.weights.auto_format import fastest_format
from app.weights.errors import FileNotInRepository, ModelError
from app.weights.kinds import unsuitable
from app.weights.quantized import quantized
from app.weights.repository import Repository

__all__ = [
    "ModelError",
    "Wanted",
    "bundled_model",
    "hub_token",
    "local_model",
    "model_here",
    "model_name",
    "model_of_repository",
    "parts_of",
    "repository_of",
    "resolve_model",
]


# Parts of a split model, as llama.cpp's llama-gguf-split names them.
_PART = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf", re.DOTALL)
# GGUF files that are not models: vision projectors and importance matrices.
_NO_MODEL = re.compile(r"(^|/)mmproj|imatrix[^/]*\.gguf$", re.IGNORECASE)
_WILDCARD = re.compile(r"[*?\[]")
_SHOWN = 40  # names in an error message


@dataclass(frozen=True, slots=True)
class Wanted:
    """Selection of one model among several.

    Attributes:
        file: Name or pattern of one of its files. None: any.
        variable: The setting that selects it.
        setting: The setting and its value, for messages, if the value is more than ``file``.
    """

    file: str | None
    variable: str = "MODEL_FILE"
    setting: str = ""

    def __str__(self) -> str:
        return self.setting or f"{self.variable}={self.file}"


def resolve_model(settings: Settings) -> Path:
    """Find the model of the settings, and download it if necessary.

    MODEL_PATH takes precedence over MODEL_REPO with MODEL_FILE. The default model comes from a Python
    package.

    Returns:
        The GGUF file, checked to be complete; for a split model, the first part. With QUANTIZE, the file in
        this format.

    Raises:
        ModelError: The model cannot be found, downloaded, read or converted.
    """
    source = source_model(settings)
    if settings.quantize is None:
        return source
    if settings.quantize == "auto":
        return fastest_format(Trial.of(settings, source), settings.models_dir, model_name(source))
    n_threads = settings.model_threads or physical_cores()
    return quantized(
        source, settings.quantize, settings.models_dir, n_threads=n_threads, name=model_name(source)
    )


def source_model(settings: Settings) -> Path:
    """The model of the settings as it is published. See `resolve_model`."""
    if settings.model_path is not None:
        return local_model(settings.model_path, "MODEL_PATH")
    wanted = Wanted(settings.model_file)
    if settings.model_repo is not None:
        where = f"MODEL_REPO={settings.model_repo} (revision {settings.model_revision})"
        repository = repository_of(settings)
        return model_of_repository(repository, wanted, where, instead="MODEL_PATH names a local file")
    if settings.model_file is not None:
        return _model_beside(settings.model_file, settings.models_dir)
    return _default_model()


def repository_of(settings: Settings) -> Repository:
    """MODEL_REPO, which must be set."""
    assert settings.model_repo is not None
    return Repository(
        settings.model_repo,
        folder=settings.models_dir,
        revision=settings.model_revision,
        token=hub_token(settings),
    )


def model_here(settings: Settings) -> Path | None:
    """The model of the settings without a request to the hub; None if it is not downloaded yet.

    Raises:
        ModelError: A local file cannot be found or read.
    """
    if settings.model_path is not None or settings.model_repo is None:
        return source_model(settings)
    repository = repository_of(settings)
    try:
        first = _choose(repository.files_here(), Wanted(settings.model_file), repository.name)[0]
    except ModelError:
        return None  # no file, or none that matches
    return repository.path_here(first)


def model_name(path: Path) -> str:
    """Name of a model: its file name without suffix and part number."""
    split = _PART.fullmatch(path.name)
    return split["stem"] if split else path.stem


def parts_of(path: Path) -> list[Path]:
    """All files of a model, from its first one."""
    return [path.with_name(part) for part in _parts(path.name)]


def hub_token(settings: Settings) -> str | None:
    """HF_TOKEN, checked to be a valid HTTP header value.

    Raises:
        ModelError: The token contains spaces, line breaks or non-ASCII characters.
    """
    if settings.hf_token is None:
        return None
    token = settings.hf_token.get_secret_value().strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise ModelError("HF_TOKEN: contains characters that are invalid in an access token; copy it again")
    return token or None


# --- locating a model


def _default_model() -> Path:
    found = bundled_model()
    if found is None:
        raise ModelError(
            f"the default model's package {DEFAULT_PACKAGE} is not installed: "
            f"run `{INSTALL}`, or set MODEL_PATH or MODEL_REPO"
        )
    _check([found], "MODEL_PATH", "the default model", f"run `{INSTALL}` again")
    return found


def local_model(path: Path, variable: str) -> Path:
    """Check that a local file is a complete model; ``variable``: the setting that names it.

    Returns:
        The file; for a split model, the first part.

    Raises:
        ModelError: The file or one of its parts is missing or damaged.
    """
    path = path.expanduser()
    if path.is_dir():
        files = [file.name for file in path.iterdir()]
        models = _models(files)
        if not models and conversion.is_convertible(files):
            raise ModelError(f"{variable}={path} has no GGUF file: {conversion.of_folder(path, variable)}")
        raise ModelError(f"{variable}={path} is a folder; name a GGUF file: {_listed(models)}")
    parts = parts_of(path)
    missing = next((part for part in parts if not part.is_file()), None)
    if missing and path.is_file():
        raise ModelError(
            f"{variable}={path}: {missing.name}, a part of the same model, is missing in its folder"
        )
    if missing:
        raise ModelError(f"{variable}={path}: no such file")
    is_other_format = conversion.is_convertible([path.name])
    advice = conversion.of_folder(path.parent, variable) if is_other_format else "name another file"
    _check(parts, variable, f"{variable}={path}", advice)
    return parts[0]


def _model_beside(wanted: str, folder: Path) -> Path:
    """MODEL_FILE without MODEL_REPO: a path, or the name or pattern of a file in MODELS_DIR."""
    if Path(wanted).expanduser().is_file():
        return local_model(Path(wanted), "MODEL_FILE")
    here = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]
    if _matching(_models(here), wanted):
        chosen = _choose(here, Wanted(wanted), f"MODELS_DIR={folder}")
        return local_model(folder / chosen[0], "MODEL_FILE")
    raise ModelError(
        f"MODEL_FILE={wanted} is not in MODELS_DIR={folder}: set MODEL_REPO to the repository that "
        "contains it, or MODEL_PATH to a local file"
    )


def model_of_repository(repository: Repository, wanted: Wanted, where: str, *, instead: str) -> Path:
    """Find a model in a repository, and download it if necessary.

    Args:
        repository: The repository.
        wanted: The model.
        where: Name of the repository in messages.
        instead: Remedy if ``wanted`` is a path.

    Returns:
        The GGUF file, checked to be complete; for a split model, the first part.

    Raises:
        ModelError: The model cannot be found, downloaded or read.
    """
    file = wanted.file
    if file is None or _WILDCARD.search(file):
        return _fetch_checked(repository, _chosen_files(repository, wanted, where))
    file = file.removeprefix("./")
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise ModelError(f"{wanted} should be a file in {where}; {instead}")
    try:
        if not file.lower().endswith(".gguf"):
            raise FileNotInRepository(file, where)
        return _fetch_checked(repository, _parts(file))
    except FileNotInRepository as error:
        files = repository.files()
        there = f"GGUF files there: {_listed(_models(files))}"
        if not _models(files) and conversion.is_convertible(files):
            there += f"; {_conversion_of(repository)}"
        if file in files and error.file != file:
            raise ModelError(f"{wanted}: its part {error.file} is not in {where}") from None
        problem = "is not a GGUF file" if file in files else f"is not in {where}"
        raise ModelError(f"{wanted} {problem}; {there}") from None


def _chosen_files(repository: Repository, wanted: Wanted, where: str) -> list[str]:
    if repository.pinned:  # a commit never changes, so local files suffice
        with suppress(ModelError):
            return _choose(repository.files_here(), wanted, where)
    files = repository.files()
    try:
        if not _models(files) and conversion.is_convertible(files):
            how = _conversion_of(repository)
            raise ModelError(
                f"{where} contains safetensors and no GGUF file: choose a repository whose name ends in "
                f"GGUF, or {how}"
            )
        return _choose(files, wanted, where)
    except ModelError as error:
        raise repository.failure or error from None


def _conversion_of(repository: Repository) -> str:
    return conversion.of_repository(repository.name, repository.revision, repository.variable)


def _fetch_checked(repository: Repository, files: Sequence[str]) -> Path:
    parts = repository.fetch(files)
    if any(_damage(part) for part in parts):
        parts = repository.fetch(files, verify=True)
    again = f"choose another file, or delete {repository.storage} to download it again"
    _check(parts, repository.variable, f"{repository.variable}={repository.name}", again)
    return parts[0]


# --- checking files


def _damage(path: Path) -> str:
    """Damage of a GGUF file; empty if it is complete."""
    try:
        read_header(path)
    except ModelFileError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return ""


def _check(parts: Iterable[Path], variable: str, what: str, advice: str) -> None:
    """Check that files are complete, and models of the kind that ``variable`` needs."""
    for part in parts:
        if damage := _damage(part):
            raise ModelError(f"{what}: {part.name} cannot be used, {damage}: {advice}")
        split = _PART.fullmatch(part.name)
        number, count = (int(split["part"]) - 1, int(split["parts"])) if split else (0, 1)
        if reason := unsuitable(read_header(part), variable, number, count):
            raise ModelError(f"{what}: {part.name} cannot be used: {reason}")


# --- selecting a model


def _parts(file: str) -> list[str]:
    """Names of all parts of the model of ``file``; only ``file`` if the model is not split."""
    split = _PART.fullmatch(file)
    count = int(split["parts"]) if split else 0
    if not split or not count:
        return [file]
    return [f"{split['stem']}-{part:05}-of-{count:05}.gguf" for part in range(1, count + 1)]


def _models(files: Iterable[str]) -> dict[str, list[str]]:
    """Models among ``files``: existing parts by the name of the first part."""
    models: dict[str, list[str]] = {}
    for file in sorted(files):
        if file.lower().endswith(".gguf") and not _NO_MODEL.search(file):
            models.setdefault(_parts(file)[0], []).append(file)
    return models


def _matching(models: dict[str, list[str]], wanted: str | None) -> dict[str, list[str]]:
    """Models with a part that matches this name or pattern, with or without folder."""
    if wanted is None:
        return models
    pattern = wanted.lower()

    def matches(file: str) -> bool:
        file = file.lower()
        return pattern == file or fnmatchcase(file, pattern) or fnmatchcase(file.rpartition("/")[2], pattern)

    return {first: parts for first, parts in models.items() if any(map(matches, parts))}


def _choose(files: Sequence[str], wanted: Wanted, where: str) -> list[str]:
    """Parts of the only model among ``files`` that matches ``wanted``."""
    models = _models(files)
    if not models:
        raise ModelError(
            f"{where} contains no GGUF file: choose one that does; their names often end in GGUF"
        )
    matching = _matching(models, wanted.file)
    if not matching:
        raise ModelError(f"{wanted} matches nothing in {where}; GGUF files there: {_listed(models)}")
    if len(matching) > 1:
        several = f"{where} contains" if wanted.file is None else f"{wanted} matches"
        raise ModelError(
            f"{several} {len(matching)} models; set {wanted.variable} to one of them: {_listed(matching)}"
        )
    (first,) = matching
    for part in _parts(first):
        if part not in files:
            setting = f"{wanted.variable}={first}" if wanted.file is None else wanted
            raise ModelError(f"{setting}: its part {part} is not in {where}")
    return _parts(first)


def _listed(models: dict[str, list[str]]) -> str:
    shown = [f"{first} ({len(parts)} parts)" if len(parts) > 1 else first for first, parts in models.items()]
    more = [f"and {len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
    return ", ".join(shown[:_SHOWN] + more) or "none"
