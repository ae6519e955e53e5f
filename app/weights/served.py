"""The models of MODELS: names, settings, and files that are on this disk."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.config.named_models import named_model
from app.config.settings import Settings, SettingsError, with_model
from app.weights.adapters import AdapterFile, adapters_of
from app.weights.model import ModelError, model_here, model_name, parts_of

# A ``:`` separates the name of a model from a tag or an adapter.
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*(/[\w.+-]+)*")
_ALL = "all"
# Settings that select one model.
_OF_ONE_MODEL = ("model", "model_path", "model_repo", "model_file", "tokenizer_repo")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model to serve.

    Attributes:
        name: Its name in requests. Empty: the name of its file, which is not known yet.
        settings: The settings with its file and its defaults.
        path: Its file; for a split model, the first part. None: not looked for, or not downloaded yet.
        n_bytes: Size of its file or files; 0: not looked for.
        is_pinned: Whether it is never unloaded.
        at_start: Whether it is loaded at start.
        adapters: Its LoRA adapters by name.
    """

    name: str
    settings: Settings
    path: Path | None = None
    n_bytes: int = 0
    is_pinned: bool = False
    at_start: bool = True
    adapters: Mapping[str, AdapterFile] = field(default_factory=dict)


def served_models(settings: Settings) -> tuple[ServedModel, ...]:
    """The models to serve. Without MODELS it is one, whose file is not looked for.

    Raises:
        SettingsError: MODELS or a setting that names some of them is invalid.
        NamedModelError: A name is not defined in MODELS_FILE, or that file is invalid.
        ModelError: A local file cannot be found or read.
    """
    if not settings.models:
        return (ServedModel("", settings, is_pinned=True, adapters=adapters_of(settings)),)
    for one in _OF_ONE_MODEL:
        if (value := getattr(settings, one)) is not None:
            raise SettingsError(
                f"{one.upper()}={value} cannot be combined with MODELS; MODELS_FILE defines the file and "
                "the tokenizer of each model"
            )
    sources = dict(_entries(settings.models))
    if len(sources) < len(settings.models):
        raise SettingsError(f"MODELS={','.join(settings.models)}: two models have the same name")
    pinned = _selected("MODELS_PINNED", settings.models_pinned, [*sources])
    first = next(iter(sources))
    without_adapters = settings.model_copy(update={"lora": ()})
    early = {first, *pinned, *_selected("MODELS_AT_START", settings.models_at_start, [*sources])}
    return tuple(
        _found(
            settings if name == first else without_adapters,
            name,
            source,
            is_pinned=name in pinned,
            at_start=name in early,
        )
        for name, source in sources.items()
    )


def _entries(models: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and source of each entry."""
    for entry in models:
        name, equals, source = entry.partition("=")
        if not equals or not _NAME.fullmatch(name):
            name, source = model_name(Path(entry)) if entry.endswith(".gguf") else entry, entry
        if not _NAME.fullmatch(name):
            raise SettingsError(
                f"MODELS: the name {name!r} should begin with a letter or a digit and have only letters, "
                "digits and _.+-/; write NAME=PATH for another name of a file"
            )
        if not source:
            raise SettingsError(f"MODELS: {entry} should be followed by a path, or by a name in MODELS_FILE")
        yield name, source


def _selected(variable: str, names: Sequence[str], known: Sequence[str]) -> set[str]:
    if [*names] == [_ALL]:
        return set(known)
    if unknown := [name for name in names if name not in known]:
        raise SettingsError(f"{variable}: {unknown[0]!r} should be one of {', '.join(known)}, or `{_ALL}`")
    return set(names)


def _found(settings: Settings, name: str, source: str, *, is_pinned: bool, at_start: bool) -> ServedModel:
    own = with_model(settings, source, variable="MODELS")
    try:
        path = model_here(own)
    except ModelError as error:
        raise ModelError(f"MODELS, {name}: {error}") from None
    if path is not None:
        n_bytes = sum(part.stat().st_size for part in parts_of(path))
    else:  # in a repository, so it has a name
        n_bytes = int(named_model(source, settings.models_file, variable="MODELS").gigabytes * 1e9)
    return ServedModel(name, own, path, n_bytes, is_pinned, at_start, adapters_of(own))
