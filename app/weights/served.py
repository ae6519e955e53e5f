"""The models of MODELS: names, settings, and files that are on this disk."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.config.named_models import named_model
from app.config.settings import Settings, SettingsError, with_model
from app.weights.adapters import AdapterFile, adapters_of, check_architecture
from app.weights.model import ModelError, model_here, model_name, parts_of

# A ``:`` separates the name of a model from a tag or an adapter.
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*(/[\w.+-]+)*")
_ALL = "all"
# Settings that select one model.
_OF_ONE_MODEL = frozenset({"model", "model_path", "model_repo", "model_file", "tokenizer_repo"})


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
    models = []
    for found in found_models(settings):
        if isinstance(found, ModelError):
            raise found
        models.append(found)
    return tuple(models)


def found_models(settings: Settings) -> Iterator[ServedModel | ModelError]:
    """The models to serve, or the errors of their files. See `served_models`.

    Raises:
        SettingsError: MODELS or a setting that names some of them is invalid.
        NamedModelError: A name is not defined in MODELS_FILE, or that file is invalid.
    """
    if not settings.models:
        yield ServedModel("", settings, is_pinned=True, adapters=adapters_of(settings))
        return
    _check_alone(settings, _OF_ONE_MODEL)
    sources = _sources(settings)
    names = [*sources]
    pinned = _selected("MODELS_PINNED", settings.models_pinned, names)
    early = {names[0], *pinned, *_selected("MODELS_AT_START", settings.models_at_start, names)}
    adapters = _adapters_by_model(settings, names)
    for name, source in sources.items():
        own = with_model(settings, source, variable="MODELS").model_copy(update={"lora": adapters[name]})
        try:
            yield _found(own, name, is_pinned=name in pinned, at_start=name in early)
        except ModelError as error:
            yield ModelError(f"MODELS, {name}: {error}")


def one_model(settings: Settings) -> Settings:
    """The settings of one model, for commands that use one: MODEL of MODELS, or the first one.

    Raises:
        SettingsError: MODEL is not one of MODELS, or MODELS is invalid.
        NamedModelError: A name is not defined in MODELS_FILE, or that file is invalid.
    """
    if not settings.models:
        return settings
    _check_alone(settings, _OF_ONE_MODEL - {"model"})
    sources = _sources(settings)
    name = settings.model or next(iter(sources))
    if name not in sources:
        raise SettingsError(f"MODEL={name}: should be one of MODELS: {', '.join(sources)}")
    own = with_model(settings, sources[name], variable="MODELS")
    return own.model_copy(update={"models": (), "lora": _adapters_by_model(settings, [*sources])[name]})


def _check_alone(settings: Settings, names: Iterable[str]) -> None:
    for one in sorted(names):
        if (value := getattr(settings, one)) is not None:
            raise SettingsError(
                f"{one.upper()}={value} cannot be combined with MODELS; MODELS_FILE defines the file and "
                "the tokenizer of each model"
            )


def _sources(settings: Settings) -> dict[str, str]:
    """A name of MODELS_FILE or a path, by the name of the model."""
    sources = dict(_entries(settings.models))
    if len(sources) < len(settings.models):
        raise SettingsError(f"MODELS={','.join(settings.models)}: two models have the same name")
    return sources


def _adapters_by_model(settings: Settings, names: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """The entries of LORA for each model, without its name. Those without a model belong to the first."""
    entries: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
    for entry in settings.lora:
        head, equals, place = entry.partition("=")
        model, colon, adapter = head.rpartition(":")
        if colon and model not in entries:
            raise SettingsError(f"LORA: {entry}: {model!r} should be one of MODELS: {', '.join(names)}")
        entries[model if colon else names[0]] += (f"{adapter}{equals}{place}",)
    return entries


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


def _found(settings: Settings, name: str, *, is_pinned: bool, at_start: bool) -> ServedModel:
    path = model_here(settings)
    adapters = adapters_of(settings)
    if path is not None:
        check_architecture(adapters, path)
        n_bytes = sum(part.stat().st_size for part in parts_of(path))
    else:  # in a repository, so it has a name in MODELS_FILE
        assert settings.model is not None
        n_bytes = int(named_model(settings.model, settings.models_file, variable="MODELS").gigabytes * 1e9)
    return ServedModel(name, settings, path, n_bytes, is_pinned, at_start, adapters)
