"""Contexts: tasks of the model, each with a system prompt and optional examples and sampling defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from app.config.errors import UserError
from app.config.toml_file import TomlError, read_toml


class ContextsError(UserError):
    """The contexts file is invalid. The message names file, key and reason."""


class Example(BaseModel):
    """A question and an answer that show the form of answers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    query: str
    answer: str


def described(choices: Any) -> Any:
    """A list of names as a table of names without descriptions."""
    if not isinstance(choices, list) or not all(isinstance(name, str) for name in choices):
        return choices
    for index, name in enumerate(choices):
        if name in choices[:index]:
            raise ValueError(f"{name!r} is there twice")
    return dict.fromkeys(choices, "")


MOST_CHOICES = 255
_StopString = Annotated[str, Field(min_length=1, max_length=256)]
_Choice = Annotated[str, Field(min_length=1, max_length=200)]
ChoiceList = Annotated[list[_Choice], Field(min_length=2, max_length=MOST_CHOICES)]
Choices = Annotated[dict[_Choice, str], Field(min_length=2, max_length=MOST_CHOICES)]


class Context(BaseModel):
    """One task. The prompt becomes the system message, the examples become the first turns.

    The sampling fields take precedence over the settings. ``knowledge``, ``thinking`` and ``thinking_budget``
    are defaults of requests. With ``choices``, each answer is one of these names. The values describe them.
    ``regex``, ``json_schema`` or ``grammar`` constrain answers of requests without own constraint. ``model``
    is one of MODELS; it answers requests that name no model. ``adapter`` is one of LORA.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: str
    examples: list[Example] = []
    choices: Annotated[Choices | None, BeforeValidator(described)] = None
    model: Annotated[str, Field(min_length=1)] | None = None
    adapter: Annotated[str, Field(min_length=1)] | None = None
    knowledge: bool = True
    thinking: bool | None = None
    thinking_budget: Annotated[int, Field(ge=0)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    stop: Annotated[list[_StopString], Field(max_length=16)] = []
    regex: Annotated[str, Field(min_length=1)] | None = None
    json_schema: dict[str, Any] | None = None
    grammar: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _chooses_without_thoughts(self) -> Context:
        if self.choices is not None and self.thinking:
            raise ValueError("choices cannot be combined with thinking = true")
        return self

    @model_validator(mode="after")
    def _has_one_constraint(self) -> Context:
        found = [name for name in _CONSTRAINTS if getattr(self, name) is not None]
        if len(found) > 1:
            raise ValueError(f"{' and '.join(found)} cannot be combined")
        return self

    def sampling(self) -> dict[str, Any]:
        """Sampling defaults of the context, with the field names of SamplingParams."""
        fields = self.model_dump(exclude=_NOT_SAMPLING, exclude_none=True)
        if self.stop:
            fields["stop"] = tuple(self.stop)
        if "repeat_penalty" in fields:
            fields["repetition_penalty"] = fields.pop("repeat_penalty")
        return fields


_CONSTRAINTS = ("choices", "regex", "json_schema", "grammar")
_NOT_SAMPLING = {
    "prompt",
    "examples",
    "stop",
    "model",
    "adapter",
    "knowledge",
    "thinking",
    "thinking_budget",
    *_CONSTRAINTS,
}


def load_contexts(path: Path) -> Mapping[str, Context]:
    """Read the contexts file: tables ``[contexts.NAME]``, or the short form ``context_NAME = "…"``.

    The short form is in a table ``[prompt_config]``. ``[contexts.NAME]`` takes precedence.

    Raises:
        ContextsError: The file is missing, not TOML, or has an invalid key or value.
    """
    try:
        data = read_toml(path)
    except TomlError as error:
        raise ContextsError(f"CONTEXTS_FILE={path}: {error}") from None
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
