"""Request bodies of the OpenAI dialect.

Unknown fields are ignored, as other servers ignore them. Unsupported fields that would affect the answer are
rejected by name.
"""

from __future__ import annotations

from dataclasses import replace
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.api.http.fields import (
    MOST_CHOICES,
    WHOLE,
    LenientStops,
    ModelName,
    SamplingFields,
    ThinkingFields,
    check_distinct,
)
from app.api.http.ignored import ignore
from app.api.http.sources import KnowledgeField
from app.api.openai.messages import (
    AllowedToolsChoice,
    ChatMessage,
    FunctionDefinition,
    FunctionName,
    NamedToolChoice,
    Part,
    ToolDefinition,
)
from app.service import Effort, ThinkingUse

ROUTE = "OpenAI"
MOST_TOKENS = 2**31 - 1  # of an answer; the room for it is less
_MOST_TOP_LOGPROBS = 20


class JSONSchemaFormat(BaseModel):
    """A JSON schema and its name."""

    model_config = ConfigDict(extra="ignore", strict=True, populate_by_name=True)

    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | bool, Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Part):
    """Format of the answer. The types ``json`` and ``regex`` and the field ``value`` are TGI's."""

    model_config = ConfigDict(extra="ignore", strict=True, populate_by_name=True)

    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    json_schema: JSONSchemaFormat | None = None
    value: Annotated[
        dict[str, Any] | str | None,
        Field(description="The schema of `json_object` or `json`, or the regular expression of `regex`."),
    ] = None

    schema_: Annotated[
        dict[str, Any] | bool | None,
        Field(alias="schema", description="The schema of `json_object`, as in llama-server."),
    ] = None

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('json_schema and type "json_schema" require each other')
        kinds, in_words = _VALUES[self.type]
        if not isinstance(self.value, kinds):
            raise ValueError(f"value should be {in_words} with type {self.type!r}")
        return self


# Types of ``value`` by type of format, and their description for error messages.
_VALUES: dict[str, tuple[tuple[type, ...], str]] = {
    "text": ((NoneType,), "omitted"),
    "json_object": ((dict, NoneType), "a schema, or omitted,"),
    "json_schema": ((NoneType,), "omitted"),
    "json": ((dict,), "a schema"),
    "regex": ((str,), "a text"),
}


class StreamOptions(Part):
    """Additional data in a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class OpenAIRequest(SamplingFields):
    """Fields of chat and completions."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    stop: LenientStops = None
    # Unsupported fields, with values that do not affect the answer.
    rejected: ClassVar[dict[str, tuple[Any, ...]]] = {}

    model: ModelName = None
    n: Annotated[int | None, Field(ge=1, le=MOST_CHOICES, description="Number of answers.")] = None
    best_of: Annotated[
        int | None,
        Field(
            ge=1,
            le=MOST_CHOICES,
            description="Number of generated answers; the `n` most likely are returned.",
        ),
    ] = None
    stream: Annotated[bool | None, Field(description="Stream the answer as server-sent events.")] = None
    stream_options: StreamOptions | None = None
    echo: Annotated[
        bool | None, Field(description="Begin the answer with the prompt or the continued message.")
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _reject(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        for name, harmless in cls.rejected.items():
            if fields.get(name) is not None and fields[name] not in harmless:
                raise ValueError(f"{name}: is not supported")
        return {name: value for name, value in fields.items() if name not in cls.rejected}

    @model_validator(mode="after")
    def _streams(self) -> OpenAIRequest:
        ignore(ROUTE, self.model_extra or ())
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: requires stream")
        if self.best_of is not None:
            if self.stream and self.best_of > self.n_choices:
                raise ValueError("best_of: a stream cannot choose the best of several answers")
            if self.best_of < self.n_choices:
                raise ValueError(f"best_of: should be at least n ({self.n_choices}), not {self.best_of}")
        return self

    @property
    def n_choices(self) -> int:
        """Number of answers to return."""
        return self.n or 1

    @property
    def n_generated(self) -> int:
        """Number of answers to generate."""
        return self.best_of or self.n_choices

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


_MAX_TOKENS = Field(
    ge=-1,
    description="Maximum tokens of the answer; -1 is as many as fit.",
    json_schema_extra={"not": {"const": 0}},
)


class ChatRequest(OpenAIRequest, ThinkingFields):
    """The body of ``POST /v1/chat/completions``."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    rejected: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "modalities": (["text"],),
        "tool_prompt": (),
        "web_search_options": (),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    context: Annotated[str | None, Field(description="Context to use. Default: CONTEXT_TYPE.")] = None
    knowledge: KnowledgeField = None
    max_tokens: Annotated[int | None, _MAX_TOKENS, WHOLE] = None
    max_completion_tokens: Annotated[int | None, _MAX_TOKENS] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=_MOST_TOP_LOGPROBS)] = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ToolDefinition] | None, Field(max_length=128)] = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | AllowedToolsChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[
        list[FunctionDefinition] | None, Field(max_length=128, description="Older form of `tools`.")
    ] = None
    function_call: Annotated[
        Literal["none", "auto"] | FunctionName | None, Field(description="Older form of `tool_choice`.")
    ] = None
    reasoning_effort: Annotated[
        Effort | None,
        Field(description="Amount of thoughts, if the template has it; `none` turns them off."),
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, Field(description="Variables of the chat template, such as `enable_thinking`.")
    ] = None

    @model_validator(mode="after")
    def _fits(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: requires logprobs")
        if 0 in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens: should be at least 1, or -1, not 0")
        self._take_functions()
        names = [tool.function.name for tool in self.tools or ()]
        choice = self.tool_choice
        chosen = [choice] if isinstance(choice, NamedToolChoice) else []
        chosen += choice.allowed_tools.tools if isinstance(choice, AllowedToolsChoice) else []
        for name in (one.function.name for one in chosen):
            if name not in names:
                raise ValueError(
                    f"tool_choice.function.name: should be one of the tools ({', '.join(names) or 'none'}), "
                    f"not {name!r}"
                )
        check_distinct(names)
        return self

    def _take_functions(self) -> None:
        """Convert the older form of tools."""
        if self.tools is None and self.functions is not None:
            self.tools = [ToolDefinition(type="function", function=function) for function in self.functions]
        older = self.function_call
        if self.tool_choice is None and older is not None:
            self.tool_choice = older if isinstance(older, str) else NamedToolChoice(function=older)

    def thinking(self) -> ThinkingUse:
        options = self.chat_template_kwargs or {}
        return replace(super().thinking(), effort=self.reasoning_effort, options=options)

    def overrides(self) -> dict[str, Any]:
        """The fields of SamplingParams that the request sets."""
        fields = self.sampling()
        longest = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        if longest is not None:
            fields["max_tokens"] = MOST_TOKENS if longest < 0 else longest
        if self.logprobs:
            fields["logprobs"] = self.top_logprobs or 0
        elif self.n_generated > self.n_choices:
            fields["logprobs"] = 0  # to choose the best
        return fields


class CompletionRequest(OpenAIRequest):
    """The body of ``POST /v1/completions``."""

    prompt: Annotated[
        str | list[str] | list[int] | list[list[int]],
        Field(description="A text or its tokens, or a list of either."),
    ]
    suffix: str | None = None
    max_tokens: Annotated[
        int | None, Field(ge=-1, description="Maximum tokens of the answer; -1 is as many as fit."), WHOLE
    ] = None
    logprobs: Annotated[int | None, Field(ge=0, le=_MOST_TOP_LOGPROBS)] = None

    @model_validator(mode="after")
    def _fits(self) -> CompletionRequest:
        if isinstance(self.prompt, list) and not 1 <= len(self.prompts) <= MOST_CHOICES:
            raise ValueError(f"prompt: should have 1 to {MOST_CHOICES} entries, not {len(self.prompts)}")
        if self.suffix is not None and self.echo:
            raise ValueError("echo: cannot be combined with suffix")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 requires echo")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast("list[str] | list[list[int]]", self.prompt)

    def overrides(self) -> dict[str, Any]:
        """The fields of SamplingParams that the request sets."""
        fields = self.sampling()
        if self.max_tokens is not None:
            fields["max_tokens"] = MOST_TOKENS if self.max_tokens < 0 else self.max_tokens
        if self.logprobs is not None:
            fields["logprobs"] = self.logprobs
            if self.echo:
                fields["prompt_logprobs"] = self.logprobs
        elif self.n_generated > self.n_choices:
            fields["logprobs"] = 0  # to choose the best
        return fields
