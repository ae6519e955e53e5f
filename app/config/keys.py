"""API keys with names and limits, from API_KEYS."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.config.errors import UserError
from app.config.toml_file import TomlError, read_toml


class KeysError(UserError):
    """API_KEYS is invalid. The message does not contain keys."""

    exit_status = 2


PRIORITIES = range(-100, 101)
Priority = Annotated[int, Field(ge=PRIORITIES[0], le=PRIORITIES[-1])]


class Key(BaseModel):
    """One key and the limits of its clients; None: no limit of its own. Docs: docs/access.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    key: Annotated[str, Field(min_length=1, repr=False)]
    priority: Priority = 0
    max_priority: Priority | None = None
    max_running: Annotated[int, Field(ge=1)] | None = None
    max_waiting: Annotated[int, Field(ge=0)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    contexts: list[str] | None = None
    models: list[str] | None = None
    uploads: bool = False


_NAME = re.compile(r"[A-Za-z_][\w.@-]*")


class Keys:
    """The keys of the server.

    Attributes:
        path: File of the keys; None without one.
    """

    def __init__(self, source: str, contexts: Collection[str] = ()) -> None:
        """Read the keys.

        Args:
            source: API_KEYS: ``NAME:KEY`` entries separated by commas, or the path of a TOML file.
            contexts: Names of the defined contexts.

        Raises:
            KeysError: An entry is invalid, or the file cannot be read.
        """
        self.path = Path(source) if source.endswith(".toml") else None
        self._contexts = contexts
        self._by_digest: Mapping[bytes, tuple[str, Key]] = {}
        if self.path is None:
            self._by_digest = self._indexed("API_KEYS", _listed(source)) if source else {}
        else:
            self.reload()

    def __bool__(self) -> bool:
        """Whether there are keys, or a file of keys."""
        return self.path is not None or bool(self._by_digest)

    def __len__(self) -> int:
        return len(self._by_digest)

    def find(self, key: bytes) -> tuple[str, Key] | None:
        """The name and the limits of a key; None if it is unknown."""
        # The time of a lookup by digest says nothing about similar keys.
        return self._by_digest.get(_digest(key))

    def reload(self) -> None:
        """Read the file again. After an error, the previous keys remain.

        Raises:
            KeysError: The file cannot be read or is invalid.
        """
        assert self.path is not None
        place = f"API_KEYS={self.path}"
        try:
            data = read_toml(self.path)
        except TomlError as error:
            raise KeysError(f"{place}: {error}") from None
        if unknown := data.keys() - {"keys"}:
            raise KeysError(f"{place}: unknown key {sorted(unknown)[0]!r}; allowed are tables [keys.NAME]")
        table = data.get("keys")
        if not isinstance(table, dict) or not table:
            raise KeysError(f'{place}: defines no key; write [keys.NAME] with key = "…"')
        self._by_digest = self._indexed(place, table)

    def _indexed(self, place: str, table: Mapping[str, Any]) -> dict[bytes, tuple[str, Key]]:
        keys: dict[bytes, tuple[str, Key]] = {}
        for name, fields in table.items():
            if not _NAME.fullmatch(name):
                raise KeysError(
                    f"{place}: {name!r} should begin with a letter and have only letters, digits and _.@-"
                )
            key = _validated(place, name, fields)
            if unknown := set(key.contexts or ()) - set(self._contexts):
                raise KeysError(
                    f"{place}: keys.{name}.contexts: {sorted(unknown)[0]!r} should be one of "
                    f"{', '.join(self._contexts)}"
                )
            digest = _digest(key.key.encode())
            if digest in keys:
                raise KeysError(f"{place}: {keys[digest][0]} and {name} have the same key")
            keys[digest] = name, key
        return keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _listed(source: str) -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = {}
    for number, entry in enumerate(source.split(","), 1):
        name, colon, key = entry.strip().partition(":")
        if not colon or not key:
            raise KeysError(
                f"API_KEYS: entry {number} should be NAME:KEY; or API_KEYS should be the path of a .toml file"
            )
        if name in table:
            raise KeysError(f"API_KEYS: {name} has two keys")
        table[name] = {"key": key}
    return table


def _validated(place: str, name: str, fields: Any) -> Key:
    try:
        return Key.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(["keys", name, *map(str, first["loc"])])
        known = {
            "missing": "is required",
            "extra_forbidden": f"is unknown; allowed are {', '.join(Key.model_fields)}",
        }
        message = known.get(first["type"], first["msg"].removeprefix("Input "))
        raise KeysError(f"{place}: {field}: {message}") from None
