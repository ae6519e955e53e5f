"""TUNED_FILE: settings that `tokenstream tune` has found, by model, CPU and library.

A table ``[[tuned]]`` for each machine and model, so several machines can share the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from app.config.errors import UserError
from app.config.model_settings import ModelSettings
from app.config.toml_file import TomlError, read_toml
from app.machine.cores import physical_cores
from app.machine.folders import cache_folder
from app.machine.identity import cpu, manifest, model_files

# Settings that can be tuned. The types are those of the settings.
TUNABLE = ("model_threads", "flash_attention", "kv_type", "matmul", "quantize")
_FIELDS: Mapping[str, Any] = {
    name: (ModelSettings.model_fields[name].annotation, ModelSettings.model_fields[name]) for name in TUNABLE
}
_Values: type[BaseModel] = create_model(
    "_Values", __config__=ConfigDict(extra="forbid", protected_namespaces=()), **_FIELDS
)

_HEAD = """\
# Written by `tokenstream tune`. A start uses a table if its conditions are those of the model and machine.
# Settings that are set take precedence. Delete a table to use the defaults again.
"""


class TunedFileError(UserError):
    """TUNED_FILE cannot be read or written."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Conditions under which the values were measured.

    Attributes:
        model: File name of the model.
        bytes: Its size, all parts together.
        quantize: QUANTIZE; empty if it is not set.
        cpu: Name of the CPU.
        cores: Physical cores that the process may use.
        build: Key of the native library.
    """

    model: str
    bytes: int
    quantize: str
    cpu: str
    cores: int
    build: str

    @classmethod
    def of(cls, model: Path, quantize: str | None) -> Conditions:
        """Those of this process."""
        size = sum(part.stat().st_size for part in model_files(model))
        name, build = cpu().get("model name", "unknown"), str(manifest().get("key", "unknown"))
        return cls(model.name, size, quantize or "", name, physical_cores(), build)


def default_place() -> Path:
    """TUNED_FILE, if it is not set."""
    return cache_folder() / "tuned.toml"


def read(path: Path, conditions: Conditions) -> Mapping[str, Any]:
    """The tuned values for these conditions, by name of the setting; empty: none.

    Raises:
        TunedFileError: The file is not valid.
    """
    found: Mapping[str, Any] = {}
    for number, table in enumerate(_tables(path)):
        if all(table.get(name) == value for name, value in asdict(conditions).items()):
            found = _checked(path, number, table.get("settings"))
    return found


def write(path: Path, conditions: Conditions, values: Mapping[str, Any], gain: float) -> None:
    """Replace the table of these conditions. Without values, the table is removed.

    Args:
        path: The file; created if it does not exist.
        conditions: Of the measurement.
        values: Values by name of the setting.
        gain: Speed in relation to the defaults.

    Raises:
        TunedFileError: The file is not valid, or cannot be written.
    """
    facts = asdict(conditions)
    tables = [t for t in _tables(path) if any(t.get(name) != value for name, value in facts.items())]
    if values:
        tables.append({**facts, "gain": round(gain, 3), "settings": dict(values)})
    unfinished = path.with_suffix(".incomplete")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(_HEAD + "".join(map(_written, tables)), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise TunedFileError(
            f"TUNED_FILE={path} cannot be written ({error.strerror}): name another file"
        ) from error


def _tables(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        content = read_toml(path)
    except TomlError as error:
        raise TunedFileError(f"TUNED_FILE={path} {error}: delete it and run `tokenstream tune`") from None
    tables = content.get("tuned", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise TunedFileError(f"TUNED_FILE={path} should have tables [[tuned]]")
    return tables


def _checked(path: Path, number: int, values: Any) -> Mapping[str, Any]:
    try:
        return _Values.model_validate(values).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(["settings", *map(str, first["loc"])])
        raise TunedFileError(f"TUNED_FILE={path}: tuned[{number}].{field}: {first['msg']}") from None


def _written(table: Mapping[str, Any]) -> str:
    plain = {name: value for name, value in table.items() if name != "settings"}
    settings = table.get("settings", {})
    lines = ["", "[[tuned]]", *_pairs(plain), "[tuned.settings]", *_pairs(settings)]
    return "\n".join(lines) + "\n"


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        yield f"{name} = {json.dumps(value, ensure_ascii=False)}"  # also TOML, for numbers and texts
