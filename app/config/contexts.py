"""The task contexts: a prompt, and perhaps sampling defaults, for each job that the model is given."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.config.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class ContextsError(UserError):
    """The contexts file cannot be used; the message names file, place and reason."""


class Example(BaseModel):
    """A question and its answer, which show a model the form that answers should have."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    query: str
    answer: str


class Context(BaseModel):
    """One task: its prompt becomes the system turn, its examples the first turns after it.

    What else is set goes before the general settings. ``knowledge`` is whether its answers draw on the
    documents of a knowledge base, where there is one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: str
    examples: list[Example] = []
    knowledge: bool = True
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1)] | None = None

    def sampling(self) -> dict[str, Any]:
        """The sampling defaults that the context sets, by the names of SamplingParams."""
        fields = self.model_dump(exclude={"prompt", "examples", "knowledge"}, exclude_none=True)
        if "repeat_penalty" in fields:
            fields["repetition_penalty"] = fields.pop("repeat_penalty")
        return fields


def load_contexts(path: Path) -> Mapping[str, Context]:
    """Read the contexts file: tables ``[contexts.NAME]``, or the plain form ``context_NAME = "…"``.

    The plain form stands in a table ``[prompt_config]``; of a context in both, the table counts.

    Raises:
        ContextsError: The file is missing, is not TOML, or has a key or value that cannot be used.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ContextsError(f"CONTEXTS_FILE={path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ContextsError(f"CONTEXTS_FILE={path}: is not valid TOML: {error}") from None
    unknown = data.keys() - {"contexts", "prompt_config"}
    if unknown:
        raise ContextsError(
            f"CONTEXTS_FILE={path}: unknown key {sorted(unknown)[0]!r}; "
            "allowed are the tables [contexts.NAME] and [prompt_config]"
        )
    contexts = {**_plain(path, data.get("prompt_config", {})), **_tables(path, data.get("contexts", {}))}
    if not contexts:
        raise ContextsError(
            f"CONTEXTS_FILE={path}: defines no context; write [contexts.general] with a prompt"
        )
    return contexts


def _plain(path: Path, table: Any) -> dict[str, Context]:
    contexts = {}
    for key, prompt in _checked_table(path, "prompt_config", table).items():
        if not key.startswith("context_") or not isinstance(prompt, str):
            raise ContextsError(
                f'CONTEXTS_FILE={path}: prompt_config.{key} should have the form context_NAME = "prompt"'
            )
        contexts[key.removeprefix("context_")] = Context(prompt=prompt)
    return contexts


def _tables(path: Path, table: Any) -> dict[str, Context]:
    contexts = {}
    for name, fields in _checked_table(path, "contexts", table).items():
        try:
            contexts[name] = Context.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(["contexts", name, *map(str, first["loc"])])
            raise ContextsError(f"CONTEXTS_FILE={path}: {place}: {first['msg']}") from None
    return contexts


def _checked_table(path: Path, name: str, table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ContextsError(f"CONTEXTS_FILE={path}: {name} should be a table")
    return table
