"""Models by name, from MODELS_FILE: a repository, a file, and defaults of settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.config.errors import UserError
from app.config.toml_file import TomlError, read_toml

# Settings that an entry may set. Others, such as addresses, do not belong to a model.
SETTINGS = frozenset(
    {
        *("n_ctx", "max_sequences", "kv_type", "flash_attention", "speculation"),
        *("model_max_token", "temperature", "top_p", "top_k", "repeat_penalty", "repeat_last_n"),
        *(
            f"tgichat_{part}"
            for part in ("user_pre", "user_post", "ass_pre", "ass_post", "sys_pre", "sys_post")
        ),
    }
)


class NamedModelError(UserError):
    """MODEL is unknown, or MODELS_FILE is invalid. The message names file, key and reason."""

    exit_status = 2


class NamedModel(BaseModel):
    """One model. Docs: config/models.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    package: bool = False
    repository: str | None = None
    file: str | None = None
    revision: str = "main"
    tokenizer: str | None = None
    gigabytes: Annotated[float, Field(gt=0)]
    context: Annotated[int, Field(gt=0)]
    settings: Mapping[str, Any] = {}

    @model_validator(mode="after")
    def _has_a_source(self) -> NamedModel:
        if not self.package and (self.repository is None or self.file is None):
            raise ValueError("repository and file are required")
        if unknown := sorted(self.settings.keys() - SETTINGS):
            raise ValueError(f"settings.{unknown[0]} should be one of {', '.join(sorted(SETTINGS))}")
        return self

    def overrides(self) -> dict[str, Any]:
        """The settings of its files."""
        return {
            "model_path": None,
            "model_repo": self.repository,
            "model_file": self.file,
            "model_revision": self.revision,
        }

    def defaults(self) -> dict[str, Any]:
        """Its defaults of other settings."""
        return {**self.settings} | ({} if self.tokenizer is None else {"tokenizer_repo": self.tokenizer})


def load_named_models(path: Path) -> Mapping[str, NamedModel]:
    """Read MODELS_FILE: tables ``[models.NAME]``.

    Raises:
        NamedModelError: The file is missing, not TOML, or has an invalid key or value.
    """
    place = f"MODELS_FILE={path}"
    try:
        tables = read_toml(path)
    except TomlError as error:
        raise NamedModelError(f"{place}: {error}") from None
    models = tables.get("models")
    if tables.keys() != {"models"} or not isinstance(models, dict):
        raise NamedModelError(f"{place}: should have tables [models.NAME] only")
    found = {}
    for name, fields in models.items():
        try:
            found[name] = NamedModel.model_validate(fields)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(["models", name, *map(str, first["loc"])])
            raise NamedModelError(f"{place}: {field}: {first['msg'].removeprefix('Value error, ')}") from None
    return found


def named_model(name: str, path: Path, *, variable: str = "MODEL") -> NamedModel:
    """A model of MODELS_FILE; ``variable``: the setting that names it.

    Raises:
        NamedModelError: The name is not defined, or the file is invalid.
    """
    models = load_named_models(path)
    if name in models:
        return models[name]
    close = difflib.get_close_matches(name, models, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise NamedModelError(
        f"{variable}={name}: {hint}It should be the path of a GGUF file, or a name of {path}: "
        f"{', '.join(models)}"
    )
