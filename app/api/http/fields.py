"""The fields of requests that several dialects share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_StopList = Annotated[list[StopString], Field(max_length=16)]
StopStrings = Annotated[_StopList, BeforeValidator(_as_list, json_schema_input_type=StopString | _StopList)]


class SamplingFields(BaseModel):
    """How an answer is chosen; what is left out is taken from the context or the settings."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    temperature: Annotated[float | None, Field(ge=0, le=10, description="0 is greedy.")] = None
    top_p: Annotated[
        float | None, Field(gt=0, le=1, description="The share of probability from which tokens are drawn.")
    ] = None
    top_k: Annotated[
        int | None, Field(ge=-1, lt=2**31, description="Of how many tokens one is drawn; 0 and -1 are all.")
    ] = None
    min_p: Annotated[
        float | None, Field(ge=0, le=1, description="Least probability, as a share of the likeliest token's.")
    ] = None
    typical_p: Annotated[
        float | None, Field(gt=0, le=1, description="The share of typical tokens; 1 is off.")
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
        Field(ge=-1, lt=2**31, description="How far back a token counts as repeated; -1 is the whole text."),
    ] = None
    presence_penalty: Annotated[
        float | None, Field(ge=-2, le=2, description="Taken from the logits of tokens that the answer has.")
    ] = None
    frequency_penalty: Annotated[
        float | None, Field(ge=-2, le=2, description="The same for each time that it has them.")
    ] = None
    logit_bias: Annotated[
        dict[Annotated[int, Field(ge=0, strict=False)], Annotated[float, Field(ge=-100, le=100)]] | None,
        Field(
            description="Token ids, and what is added to their logits.",
            json_schema_extra={"propertyNames": {"pattern": "^[0-9]+$"}},
        ),
    ] = None
    seed: Annotated[
        int | None, Field(ge=-(2**63), lt=2**63, description="Equal seeds give equal draws; 32 bits count.")
    ] = None
    stop: Annotated[StopStrings | None, Field(description="Where the answer ends, without it.")] = None
    ignore_eos: Annotated[bool | None, Field(description="Go on where the model would end.")] = None

    def sampling(self) -> dict[str, Any]:
        """The SamplingParams fields that the request sets."""
        fields = self.model_dump(include=_SAMPLING_FIELDS, exclude_none=True)
        if "stop" in fields:
            fields["stop"] = tuple(fields["stop"])
        if "seed" in fields:
            fields["seed"] %= 2**32
        if "top_k" in fields:
            fields["top_k"] = max(fields["top_k"], 0)
        return fields


_SAMPLING_FIELDS = set(SamplingFields.model_fields)
