"""Request bodies of the Responses API.

Fields, tools and items that the server does not know are ignored, with a warning in the log.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.api.http.fields import WHOLE, ModelName, SamplingFields, ThinkingFields, check_distinct
from app.api.http.ignored import warn_once
from app.api.http.sources import KnowledgeField
from app.service import Effort

ROUTE = "/v1/responses"
_TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text", "refusal")
_ITEMS = ("message", "reasoning", "function_call", "function_call_output")
# Without effect on the answer.
_HARMLESS = frozenset(
    {
        "background",
        "client_metadata",
        "include",
        "max_tool_calls",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "stream_options",
        "top_logprobs",
        "truncation",
        "user",
    }
)
# They would change the answer.
_UNSUPPORTED = {"conversation": "the items, or previous_response_id", "prompt": "instructions and input"}


class _Fields(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class ContentPart(_Fields):
    """A text part."""

    type: str
    text: str = ""
    refusal: str = ""

    @model_validator(mode="after")
    def _is_text(self) -> ContentPart:
        if self.type not in _TEXT_PARTS:
            raise ValueError(
                f"type {self.type!r} is not supported; should be one of {', '.join(_TEXT_PARTS)}"
            )
        return self


Content = str | list[ContentPart]


def text_of(content: Content | None) -> str:
    if isinstance(content, list):
        return "".join(part.text or part.refusal for part in content)
    return content or ""


class InputItem(_Fields):
    """An item of a conversation: a message, a thought, a call, or the result of a call."""

    type: Annotated[str, Field(description="Items of other types are ignored.")] = "message"
    id: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content | None = None
    summary: list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Content | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> InputItem:
        if self.type == "item_reference":
            raise ValueError("item_reference is not supported; send the item, or previous_response_id")
        required = {
            "message": ("role", "content"),
            "function_call": ("call_id", "name", "arguments"),
            "function_call_output": ("call_id", "output"),
        }
        for field in required.get(self.type, ()):
            if getattr(self, field) is None:
                raise ValueError(f"{field} is required with type {self.type!r}")
        if self.type not in _ITEMS:
            warn_once(ROUTE, f"an item of type {self.type!r}")
        return self


class ResponseTool(_Fields):
    """A tool. Types other than ``function`` are ignored."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolName(_Fields):
    """A tool by name."""

    type: str = "function"
    name: str | None = None


class ToolSelection(_Fields):
    """The tool that the model must call, or the tools that it may call."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[ToolName] = []


class TextFormat(BaseModel):
    """Format of the answer."""

    model_config = ConfigDict(extra="ignore", strict=True, populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: Annotated[dict[str, Any] | bool | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> TextFormat:
        if self.type == "json_schema" and self.schema_ is None:
            raise ValueError('schema is required with type "json_schema"')
        return self


class TextOptions(_Fields):
    """Options of the answer's text."""

    format: TextFormat | None = None


class ReasoningOptions(_Fields):
    """Options of thoughts."""

    effort: Effort | None = None


class ResponsesRequest(SamplingFields, ThinkingFields):
    """The body of ``POST /v1/responses``."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: ModelName = None
    input: Annotated[
        str | Annotated[list[InputItem], Field(max_length=8192)] | None,
        Field(description="The conversation."),
    ] = None
    instructions: Annotated[str | None, Field(description="System message of this response only.")] = None
    previous_response_id: Annotated[
        str | None, Field(description="Response that this one continues. It is kept for an hour.")
    ] = None
    store: Annotated[bool | None, Field(description="Whether a later response may continue this one.")] = None
    stream: bool | None = None
    max_output_tokens: Annotated[int | None, Field(ge=1), WHOLE] = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    tools: Annotated[list[ResponseTool] | None, Field(max_length=256)] = None
    tool_choice: Literal["none", "auto", "required"] | ToolSelection | None = None
    parallel_tool_calls: bool | None = None
    context: Annotated[str | None, Field(description="Context to use. Default: CONTEXT_TYPE.")] = None
    knowledge: KnowledgeField = None

    @model_validator(mode="after")
    def _fits(self) -> ResponsesRequest:
        if not self.input and self.previous_response_id is None:
            raise ValueError("input: is required")
        for name, instead in _UNSUPPORTED.items():
            if (self.model_extra or {}).get(name) is not None:
                raise ValueError(f"{name}: is not supported; send {instead}")
        check_distinct(tool.name for tool in self.tools or () if tool.type == "function")
        for name in sorted((self.model_extra or {}).keys() - _HARMLESS):
            warn_once(ROUTE, f"the field {name[:64]!r}")
        return self

    def overrides(self) -> dict[str, Any]:
        """The fields of SamplingParams that the request sets."""
        longest = self.max_output_tokens
        return self.sampling() | ({} if longest is None else {"max_tokens": longest})
