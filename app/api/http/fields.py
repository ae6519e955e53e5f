"""Common request fields of several dialects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from app.service import ThinkingUse

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
LENIENT = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)
MOST_CHOICES = 128  # answers to one request
EXAMPLE_CONVERSATION = [
    {"role": "system", "content": "Answer in one sentence."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
]


def _as_whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Clients in languages with one type of numbers send 40.0, which is an integer in JSON schema.
WHOLE = BeforeValidator(_as_whole)
_LEAST_TOP_P = 1e-6  # keeps only the most likely token

StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_StopList = Annotated[list[StopString], Field(max_length=16)]
StopStrings = Annotated[_StopList, BeforeValidator(_as_list, json_schema_input_type=StopString | _StopList)]


def _without_empty(stop: Any) -> Any:
    """Stop strings without empty ones, which clients send for none."""
    stop = _as_list(stop)
    return [text for text in stop if text != ""] if isinstance(stop, list) else stop


_AnyStop = Annotated[str, Field(max_length=256)]
LenientStops = Annotated[
    _StopList | None,
    BeforeValidator(
        _without_empty,
        json_schema_input_type=_AnyStop | Annotated[list[_AnyStop], Field(max_length=16)] | None,
    ),
    Field(description="Texts that end the answer. The answer excludes them."),
]


def check_distinct(names: Iterable[str | None]) -> None:
    """Check that no tool's name occurs twice.

    Raises:
        ValueError: One does.
    """
    seen: set[str | None] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"tools: the name {name!r} occurs twice")
        seen.add(name)


ModelName = Annotated[
    str | None,
    Field(
        description="A name of `/v1/models`. A server with one model accepts any name. Default: the model of "
        "the context, else the first one."
    ),
]


class SamplingFields(BaseModel):
    """Sampling parameters. Missing ones come from the context or the settings."""

    model_config = STRICT

    temperature: Annotated[float | None, Field(ge=0, le=10, description="0 is greedy.")] = None
    top_p: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Nucleus sampling: share of probability to sample from; 0 is the most likely token.",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        Field(ge=-1, lt=2**31, description="Sample from the most likely tokens only; 0 and -1 are all."),
        WHOLE,
    ] = None
    min_p: Annotated[
        float | None,
        Field(ge=0, le=1, description="Minimum probability, relative to the most likely token's."),
    ] = None
    typical_p: Annotated[
        float | None,
        Field(gt=0, le=1, description="Locally typical sampling: share of probability to keep; 1 is off."),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        Field(
            gt=0,
            le=10,
            description="Divides the logits of repeated tokens; 1 is off.",
            validation_alias=AliasChoices("repetition_penalty", "repeat_penalty"),
        ),
    ] = None
    repeat_last_n: Annotated[
        int | None,
        Field(ge=-1, lt=2**31, description="Number of last tokens whose repetition is penalized; -1 is all."),
        WHOLE,
    ] = None
    presence_penalty: Annotated[
        float | None, Field(ge=-2, le=2, description="Subtracted from the logits of tokens in the answer.")
    ] = None
    frequency_penalty: Annotated[
        float | None, Field(ge=-2, le=2, description="Subtracted for each occurrence in the answer.")
    ] = None
    logit_bias: Annotated[
        dict[Annotated[int, Field(ge=0, strict=False)], Annotated[float, Field(ge=-100, le=100)]] | None,
        Field(
            description="Added to the logits, by token id.",
            json_schema_extra={"propertyNames": {"pattern": "^[0-9]+$"}},
        ),
    ] = None
    seed: Annotated[
        int | None,
        Field(ge=-(2**63), lt=2**63, description="Equal seeds sample equally; 32 bits are used."),
        WHOLE,
    ] = None
    stop: Annotated[
        StopStrings | None, Field(description="Texts that end the answer. The answer excludes them.")
    ] = None
    ignore_eos: Annotated[bool | None, Field(description="Continue past the end-of-sequence token.")] = None

    def sampling(self) -> dict[str, Any]:
        """The fields of SamplingParams that the request sets."""
        fields = self.model_dump(include=_SAMPLING_FIELDS, exclude_none=True)
        if "stop" in fields:
            fields["stop"] = tuple(fields["stop"])
        if "top_p" in fields:
            fields["top_p"] = max(fields["top_p"], _LEAST_TOP_P)
        if "seed" in fields:
            fields["seed"] %= 2**32
        if "top_k" in fields:
            fields["top_k"] = max(fields["top_k"], 0)
        return fields


_SAMPLING_FIELDS = set(SamplingFields.model_fields)


class ThinkingFields(BaseModel):
    """Thoughts before the answer, for models that have them."""

    model_config = STRICT

    enable_thinking: Annotated[
        bool | None,
        Field(description="Whether the model thinks before the answer. Default: the context's."),
    ] = None
    thinking_budget: Annotated[
        int | None,
        Field(
            ge=-1,
            lt=2**31,
            description="Maximum tokens of a thought, which is then ended; -1 is no limit.",
            validation_alias=AliasChoices(
                "thinking_budget", "thinking_budget_tokens", "reasoning_budget_tokens"
            ),
        ),
    ] = None

    def thinking(self) -> ThinkingUse:
        budget = self.thinking_budget
        return ThinkingUse(self.enable_thinking, budget=None if budget == -1 else budget)
