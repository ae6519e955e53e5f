"""Request bodies of the Ollama dialect. Unknown fields and options are ignored, as Ollama ignores them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from app.api.http.fields import LENIENT, WHOLE, LenientStops, SamplingFields, check_distinct
from app.service import ThinkingUse

_MOST_TOP_LOGPROBS = 20
# As Go writes durations: "1h30m", "-1s", "0".
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "": 1}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)")
_DURATION = re.compile(rf"[+-]?({_DURATION_PART.pattern})+")
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class Options(SamplingFields):
    """Sampling parameters. Options of Ollama's model loading, such as ``num_ctx``, are ignored."""

    model_config = LENIENT

    stop: LenientStops = None
    num_predict: Annotated[
        int | None,
        Field(
            ge=-2, description="Maximum tokens of the answer; below 1: as the context or settings have it."
        ),
        WHOLE,
    ] = None


class OllamaCalledFunction(BaseModel):
    """A function and its arguments."""

    model_config = LENIENT

    name: _Name
    arguments: dict[str, Any] = {}


class OllamaMessageToolCall(BaseModel):
    """A tool call of the assistant."""

    model_config = LENIENT

    id: Annotated[str | None, Field(min_length=1, max_length=256)] = None
    function: OllamaCalledFunction


class OllamaChatMessage(BaseModel):
    """A message of a conversation."""

    model_config = LENIENT

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[OllamaMessageToolCall] | None = None
    tool_name: _Name | None = None
    tool_call_id: str | None = None
    images: Annotated[list[Any] | None, Field(max_length=0, description="Not supported.")] = None


class OllamaFunctionDefinition(BaseModel):
    """A function that the model may call."""

    model_config = LENIENT

    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None


class OllamaToolDefinition(BaseModel):
    """A tool. Only functions are supported."""

    model_config = LENIENT

    type: Literal["function"] | None = None
    function: OllamaFunctionDefinition


class AnsweringRequest(BaseModel):
    """Fields of ``/api/chat`` and ``/api/generate``."""

    model_config = LENIENT

    model: Annotated[
        str,
        Field(min_length=1, description="A name of `/api/tags`. A server with one model accepts any name."),
    ]
    stream: Annotated[
        bool | None, Field(description="Stream the answer as lines of JSON. Default: true.")
    ] = None
    format: Annotated[
        Literal["", "json"] | dict[str, Any] | None,
        Field(description="`json` for an object, or a JSON schema of the answer."),
    ] = None
    options: Options | None = None
    keep_alive: Annotated[
        float | str | None,
        Field(
            description="Idle time after which the model is unloaded: seconds, or a text such as `5m`. Below "
            "0: never. A server with one model, and pinned models, ignore it."
        ),
    ] = None
    think: Annotated[
        bool | Literal["low", "medium", "high", "max"] | None,
        Field(description="Whether the model thinks before the answer, or how much. Default: the context's."),
    ] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=_MOST_TOP_LOGPROBS)] = None

    @model_validator(mode="after")
    def _has_a_duration(self) -> AnsweringRequest:
        if isinstance(self.keep_alive, str) and not _DURATION.fullmatch(self.keep_alive):
            raise ValueError(
                f"keep_alive: should be seconds, or a duration such as 5m, not {self.keep_alive!r}"
            )
        return self

    @property
    def keeps_for(self) -> float | None:
        """Seconds of ``keep_alive``. None: no limit, or it is not set."""
        given = self.keep_alive
        if isinstance(given, str):
            sign = -1.0 if given.startswith("-") else 1.0
            parts = _DURATION_PART.findall(given)
            given = sign * sum(float(number) * _UNITS[unit] for number, unit in parts)
        return None if given is None or given < 0 else given

    def thinking(self) -> ThinkingUse:
        if isinstance(self.think, str):
            return ThinkingUse(wanted=True, effort=self.think)
        return ThinkingUse(wanted=self.think)

    def overrides(self) -> dict[str, Any]:
        """The fields of SamplingParams that the request sets."""
        fields = self.options.sampling() if self.options else {}
        longest = self.options.num_predict if self.options else None
        if longest is not None and longest > 0:
            fields["max_tokens"] = longest
        if self.logprobs:
            fields["logprobs"] = self.top_logprobs or 0
        return fields


class OllamaChatRequest(AnsweringRequest):
    """The body of ``POST /api/chat``."""

    messages: Annotated[
        list[OllamaChatMessage] | None,
        Field(
            max_length=4096, description="Without messages, the response only tells that the model is loaded."
        ),
    ] = None
    tools: Annotated[list[OllamaToolDefinition] | None, Field(max_length=128)] = None

    @model_validator(mode="after")
    def _has_distinct_tools(self) -> OllamaChatRequest:
        check_distinct(tool.function.name for tool in self.tools or ())
        return self


class OllamaGenerateRequest(AnsweringRequest):
    """The body of ``POST /api/generate``."""

    prompt: Annotated[
        str | None,
        Field(description="The question. Without it, the response only tells that the model is loaded."),
    ] = None
    suffix: Annotated[str | None, Field(description="Text after the gap to fill in.")] = None
    system: Annotated[str | None, Field(description="Replaces the system prompt of the context.")] = None
    raw: Annotated[bool | None, Field(description="Continue the prompt, without context and template.")] = (
        None
    )
    template: Annotated[str | None, Field(max_length=0, description="Not supported.")] = None
    context: Annotated[list[int] | None, Field(max_length=0, description="Not supported.")] = None
    images: Annotated[list[Any] | None, Field(max_length=0, description="Not supported.")] = None

    @model_validator(mode="after")
    def _is_possible(self) -> OllamaGenerateRequest:
        if self.raw and self.system:
            raise ValueError("system: cannot be combined with raw")
        return self


class OllamaEmbedRequest(BaseModel):
    """The body of ``POST /api/embed``."""

    model_config = LENIENT

    model: Annotated[str, Field(min_length=1, description="Any name. The embedding model answers.")]
    input: Annotated[str | list[str], Field(description="A text, or a list of texts.")]
    truncate: Annotated[
        bool | None, Field(description="Truncate long texts at the end. If false, they are rejected.")
    ] = None
    dimensions: Annotated[
        int | None, Field(ge=1, description="Dimensions of each vector. Fewer require a Matryoshka model.")
    ] = None


class OllamaEmbeddingsRequest(BaseModel):
    """The body of ``POST /api/embeddings``."""

    model_config = LENIENT

    model: Annotated[str, Field(min_length=1, description="Any name. The embedding model answers.")]
    prompt: Annotated[str, Field(description="The text.")]


class ModelRequest(BaseModel):
    """The body of ``POST /api/show`` and ``/api/pull``."""

    model_config = LENIENT

    model: Annotated[
        str,
        Field(min_length=1, description="A name of `/api/tags`. A server with one model accepts any name."),
    ]
    stream: Annotated[bool | None, Field(description="Answer with lines of JSON. Default: true.")] = None

    @model_validator(mode="before")
    @classmethod
    def _take_name(cls, fields: Any) -> Any:
        """Older clients send ``name``."""
        if isinstance(fields, dict) and "model" not in fields and "name" in fields:
            return {**fields, "model": fields["name"]}
        return fields
