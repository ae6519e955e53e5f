"""LoRA adapters of LORA: names → checked files on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from app.config.settings import Settings, SettingsError
from app.engine.llama.gguf import ModelFileError, read_header
from app.weights.errors import ModelError

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter.

    Attributes:
        path: A GGUF of type ``adapter``.
        scale: Factor of its additions to the weights.
        architecture: Of its base model.
        n_bytes: Size of its tensors.
    """

    path: Path
    scale: float
    architecture: str
    n_bytes: int

    @property
    def identity(self) -> str:
        """Changes with the file and the scale."""
        status = self.path.stat()
        return f"{self.path.resolve()} {status.st_size} {status.st_mtime_ns} {self.scale}"


def adapters_of(settings: Settings) -> Mapping[str, AdapterFile]:
    """The adapters of LORA by name.

    Raises:
        SettingsError: An entry has another form than NAME=PATH[:SCALE], or a name is invalid or there twice.
        ModelError: A file is missing, damaged, or no LoRA adapter.
    """
    found: dict[str, AdapterFile] = {}
    for entry in settings.lora:
        name, equals, place = entry.partition("=")
        if not (equals and place):
            raise SettingsError(f"LORA: {entry} should have the form NAME=PATH or NAME=PATH:SCALE")
        if not _NAME.fullmatch(name) or name == "latest":
            raise SettingsError(
                f"LORA: the name {name!r} should begin with a letter or a digit and have only letters, "
                "digits and _.+-, and should not be `latest`; MODEL:NAME needs MODELS"
            )
        if name in found:
            raise SettingsError(f"LORA: the name {name} is there twice")
        found[name] = _checked(name, *_with_scale(place))
    return found


def _with_scale(place: str) -> tuple[Path, float]:
    path, colon, last = place.rpartition(":")
    if colon and not Path(place).exists():
        with suppress(ValueError):
            if isfinite(scale := float(last)):
                return Path(path), scale
    return Path(place), 1.0


def _checked(name: str, path: Path, scale: float) -> AdapterFile:
    place = f"LORA: {name}={path}"
    try:
        header = read_header(path)
    except ModelFileError as error:
        raise ModelError(f"{place}: {error}") from None
    except OSError as error:
        raise ModelError(f"{place}: cannot be read: {error.strerror}") from None
    kind, of = header.values.get("general.type"), header.values.get("adapter.type")
    if kind != "adapter" and of is None:
        raise ModelError(
            f"{place}: it is a whole model ({header.architecture}) and no adapter, so set MODEL_PATH to it"
        )
    if of != "lora":
        raise ModelError(f"{place}: it is an adapter of type {of}; only `lora` is supported")
    return AdapterFile(path, scale, header.architecture, header.n_bytes)


def check_architecture(adapters: Mapping[str, AdapterFile], model: Path) -> None:
    """Check that adapters are made for a model of this architecture.

    Raises:
        ModelError: One is not.
    """
    if not adapters:
        return
    own = read_header(model).architecture
    for name, adapter in adapters.items():
        if adapter.architecture != own:
            raise ModelError(
                f"LORA: {name}={adapter.path}: it is made for a model of architecture "
                f"{adapter.architecture}, and {model.name} has {own}; name an adapter of this model"
            )
