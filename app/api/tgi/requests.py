"""What requests of the TGI dialect may say. Fields that TGI does not know are ignored, as TGI does."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.api.http.vectors import MOST_INPUTS

_UNSIGNED = Field(ge=0, lt=2**64)
# Limits that are documented here and checked, in TGI's words, by its validation.
_POSITIVE = Field(json_schema_extra={"exclusiveMinimum": 0})
_SHARE = Field(json_schema_extra={"exclusiveMinimum": 0, "exclusiveMaximum": 1})
_PENALTY = Field(json_schema_extra={"minimum": -2, "maximum": 2})


class _Fields(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class Grammar(_Fields):
    """What the answer has to be: JSON by a schema, or what a regular expression matches."""

    type: Literal["json", "json_object", "json_schema", "regex"]
    value: Annotated[
        Any,
        Field(
            description='A schema or its text, `{"schema": …}` for `json_schema`, or a regular expression.'
        ),
    ]


class GenerateParameters(_Fields):
    """How a text is generated; TGI's parameters."""

    adapter_id: Annotated[str | None, Field(description="Refused: there are no adapters.")] = None
    best_of: Annotated[
        int | None,
        _UNSIGNED,
        _POSITIVE,
        Field(description="Of so many answers the likeliest is given; at most MAX_BEST_OF."),
    ] = None
    decoder_input_details: Annotated[
        bool, Field(description="Tell the tokens of the prompt and their log-probabilities.")
    ] = False
    details: Annotated[bool, Field(description="Tell how the answer came about.")] = False
    do_sample: Annotated[
        bool,
        Field(description="Draw tokens; `temperature`, `top_k`, `top_p` and `typical_p` imply it."),
    ] = False
    frequency_penalty: Annotated[
        float | None,
        _PENALTY,
        Field(description="Taken from the logits of tokens for each time they are there."),
    ] = None
    grammar: Annotated[Grammar | None, Field(description="What the answer keeps to.")] = None
    max_new_tokens: Annotated[
        int | None,
        Field(ge=0, lt=2**32, description="Longest answer; without it MODEL_MAX_TOKEN."),
        _POSITIVE,
    ] = None
    repetition_penalty: Annotated[
        float | None, _POSITIVE, Field(description="Divides the logits of repeated tokens; 1 is off.")
    ] = None
    return_full_text: Annotated[bool | None, Field(description="Put the prompt before the answer.")] = None
    seed: Annotated[
        int | None, _UNSIGNED, Field(description="Equal seeds give equal draws; 32 bits count.")
    ] = None
    stop: Annotated[
        list[str], Field(description="Where the answer ends, with it; at most MAX_STOP_SEQUENCES.")
    ] = []
    temperature: Annotated[
        float | None, _POSITIVE, Field(description="The lower, the likelier the tokens that are drawn.")
    ] = None
    top_k: Annotated[
        int | None,
        Field(ge=-(2**31), lt=2**31, description="Of how many tokens one is drawn."),
        _POSITIVE,
    ] = None
    top_n_tokens: Annotated[
        int | None,
        Field(
            ge=0, lt=2**32, description="Tell so many alternatives to each token; at most MAX_TOP_N_TOKENS."
        ),
    ] = None
    top_p: Annotated[
        float | None, _SHARE, Field(description="The share of probability from which tokens are drawn.")
    ] = None
    truncate: Annotated[
        int | None,
        _UNSIGNED,
        _POSITIVE,
        Field(description="Leave out all but the last so many tokens of the prompt."),
    ] = None
    typical_p: Annotated[float | None, _SHARE, Field(description="The share of typical tokens.")] = None
    watermark: Annotated[
        bool, Field(description="Prefer tokens by which the text can be recognized as generated.")
    ] = False


class GenerateRequest(_Fields):
    """The body of ``POST /generate`` and ``/generate_stream``."""

    inputs: Annotated[str, Field(description="The text to go on with.")]
    parameters: GenerateParameters = GenerateParameters()


class CompatGenerateRequest(GenerateRequest):
    """The body of ``POST /``: of either, by ``stream``."""

    stream: Annotated[bool, Field(description="Answer token by token, as events.")] = False


class EmbedRequest(_Fields):
    """The body of ``POST /embed``: that of Text Embeddings Inference."""

    inputs: Annotated[
        str | Annotated[list[str], Field(json_schema_extra={"minItems": 1, "maxItems": MOST_INPUTS})],
        Field(description="A text, or several."),
    ]
    normalize: Annotated[bool | None, Field(description="Whether vectors get length 1, as without it.")] = (
        None
    )
    truncate: Annotated[
        bool | None,
        Field(description="Cut texts that are longer than the model reads; else they are refused."),
    ] = None
    truncation_direction: Annotated[
        Literal["left", "right", "Left", "Right"] | None,
        Field(description="The side from which they are cut; without it right."),
    ] = None
    prompt_name: Annotated[
        Literal["query", "passage", "document"] | None,
        Field(
            description="What is put before each text: EMBEDDING_QUERY_PREFIX, EMBEDDING_PASSAGE_PREFIX, "
            "or nothing."
        ),
    ] = None
    dimensions: Annotated[
        int | None,
        Field(ge=1, description="How many numbers a vector has, where the model was trained for fewer."),
    ] = None
    encoding_format: Annotated[Literal["float"] | None, Field(description="Of no influence.")] = None

    @property
    def direction(self) -> Literal["left", "right"] | None:
        """From which side texts are cut; None where they are not."""
        if not self.truncate:
            return None
        return "left" if self.truncation_direction in ("left", "Left") else "right"


class TokenizeRequest(_Fields):
    """The body of ``POST /tokenize``."""

    inputs: str


# --- responses


class Token(BaseModel):
    """A token that was generated, or could have been."""

    id: int
    text: str
    logprob: float | None
    special: bool


class PrefillToken(BaseModel):
    """A token of the prompt; the first has no log-probability."""

    id: int
    text: str
    logprob: float | None


FinishReason = Literal["length", "eos_token", "stop_sequence"]


class BestOfSequence(BaseModel):
    """One of several answers."""

    generated_text: str
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None = None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | None = None


class Details(BaseModel):
    """How an answer came about."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None = None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | None = None
    best_of_sequences: list[BestOfSequence] | None = None


class GenerateResponse(BaseModel):
    """An answer."""

    generated_text: str
    details: Details | None = None


class StreamDetails(BaseModel):
    """How a stream ended."""

    finish_reason: FinishReason
    generated_tokens: int
    input_length: int
    seed: int | None = None


class StreamResponse(BaseModel):
    """One token of a stream; the last has the whole text, and details where they were asked for."""

    index: int
    token: Token
    top_tokens: list[Token] | None = None
    generated_text: str | None = None
    details: StreamDetails | None = None


class SimpleToken(BaseModel):
    """A token of a text, and which of its bytes (in UTF-8) it stands for."""

    id: int
    text: str
    start: int
    stop: int


class ChatTokenizeResponse(BaseModel):
    """A conversation as the model reads it."""

    tokenize_response: list[SimpleToken]
    templated_text: str


class Info(BaseModel):
    """What answers here, and its limits; the fields of TGI 0.9 and of TGI 3."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_device_type: str
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_length: int
    max_input_tokens: int
    max_total_tokens: int
    max_top_n_tokens: int
    max_batch_total_tokens: int
    max_waiting_tokens: int
    max_client_batch_size: int
    waiting_served_ratio: float
    validation_workers: int
    router: str
    version: str
    sha: str | None
    docker_label: str | None


class ErrorResponse(BaseModel):
    """Why there is no answer."""

    error: str
    error_type: str
