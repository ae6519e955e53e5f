"""Request bodies of the TGI dialect. Unknown fields are ignored, as in TGI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_UNSIGNED = Field(ge=0, lt=2**64)
# Limits for the OpenAPI document. tgi.validation checks them, with TGI's messages.
_POSITIVE = Field(json_schema_extra={"exclusiveMinimum": 0})
_SHARE = Field(json_schema_extra={"exclusiveMinimum": 0, "exclusiveMaximum": 1})
_PENALTY = Field(json_schema_extra={"minimum": -2, "maximum": 2})


class TgiFields(BaseModel):
    """Base of the request bodies."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class Grammar(TgiFields):
    """Format of the answer: JSON by a schema, or text by a regular expression."""

    type: Literal["json", "json_object", "json_schema", "regex"]
    value: Annotated[
        Any,
        Field(
            description='A schema or its text, `{"schema": …}` for `json_schema`, or a regular expression.'
        ),
    ]


class GenerateParameters(TgiFields):
    """TGI's parameters of generation."""

    adapter_id: Annotated[str | None, Field(description="Name of a LoRA adapter (LORA).")] = None
    best_of: Annotated[
        int | None,
        _UNSIGNED,
        _POSITIVE,
        Field(description="Number of generated answers; the most likely is returned. At most MAX_BEST_OF."),
    ] = None
    decoder_input_details: Annotated[
        bool, Field(description="Return the tokens of the prompt and their log-probabilities.")
    ] = False
    details: Annotated[bool, Field(description="Return the tokens and the finish reason of the answer.")] = (
        False
    )
    do_sample: Annotated[
        bool,
        Field(description="Sample; implied by `temperature`, `top_k`, `top_p` and `typical_p`."),
    ] = False
    frequency_penalty: Annotated[
        float | None,
        _PENALTY,
        Field(description="Subtracted from the logits for each occurrence in the answer."),
    ] = None
    grammar: Annotated[Grammar | None, Field(description="Format of the answer.")] = None
    max_new_tokens: Annotated[
        int | None,
        Field(ge=0, lt=2**32, description="Maximum tokens of the answer. Default: MODEL_MAX_TOKEN."),
        _POSITIVE,
    ] = None
    repetition_penalty: Annotated[
        float | None, _POSITIVE, Field(description="Divides the logits of repeated tokens; 1 is off.")
    ] = None
    return_full_text: Annotated[bool | None, Field(description="Return the prompt before the answer.")] = None
    seed: Annotated[
        int | None, _UNSIGNED, Field(description="Equal seeds sample equally; 32 bits are used.")
    ] = None
    stop: Annotated[
        list[str],
        Field(description="Texts that end the answer. It includes them. At most MAX_STOP_SEQUENCES."),
    ] = []
    temperature: Annotated[float | None, _POSITIVE, Field(description="Sampling temperature.")] = None
    top_k: Annotated[
        int | None,
        Field(ge=-(2**31), lt=2**31, description="Sample from the most likely tokens only."),
        _POSITIVE,
    ] = None
    top_n_tokens: Annotated[
        int | None,
        Field(
            ge=0,
            lt=2**32,
            description="Number of alternatives to return for each token. At most MAX_TOP_N_TOKENS.",
        ),
    ] = None
    top_p: Annotated[
        float | None, _SHARE, Field(description="Nucleus sampling: share of probability to sample from.")
    ] = None
    truncate: Annotated[
        int | None,
        _UNSIGNED,
        _POSITIVE,
        Field(description="Keep only the last tokens of the prompt."),
    ] = None
    typical_p: Annotated[
        float | None, _SHARE, Field(description="Locally typical sampling: share of probability to keep.")
    ] = None
    watermark: Annotated[bool, Field(description="Add a watermark that identifies generated text.")] = False


class GenerateRequest(TgiFields):
    """The body of ``POST /generate`` and ``/generate_stream``."""

    inputs: Annotated[str, Field(description="The text to continue.")]
    parameters: GenerateParameters = GenerateParameters()


class CompatGenerateRequest(GenerateRequest):
    """The body of ``POST /``."""

    stream: Annotated[bool, Field(description="Stream the answer as server-sent events.")] = False
