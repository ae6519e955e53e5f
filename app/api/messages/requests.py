"""Request bodies of the Messages API.

Fields and tools that the server does not know are ignored, with a warning in the log.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.api.http.fields import WHOLE, ModelName, SamplingFields, StopString, check_distinct
from app.api.http.ignored import warn_once
from app.api.messages.blocks import ROUTE, ContentBlock, Fields
from app.service import Effort, ThinkingUse

# Without effect on the answer.
_HARMLESS = frozenset(
    {
        "betas",
        "cache_control",
        "container",
        "context_management",
        "diagnostics",
        "inference_geo",
        "metadata",
        "service_tier",
        "speed",
    }
)
# Some clients begin the system text with a line that differs in each request. No prefix could be reused.
_BILLING_LINE = re.compile(r"\A\s*x-anthropic-billing-header:[^\n]*\n*")


class TextBlock(Fields):
    """A block of text."""

    type: Literal["text"] = "text"
    text: str


def system_text(system: str | list[TextBlock] | None) -> str:
    """The system text, without clients' billing lines."""
    texts = [block.text for block in system] if isinstance(system, list) else [system or ""]
    return "\n\n".join(filter(None, (_BILLING_LINE.sub("", text) for text in texts)))


class MessageParam(Fields):
    """A message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


class ToolParam(Fields):
    """A tool. Tools of types other than ``custom`` are ignored."""

    type: str | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(Fields):
    """Use of the tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class ThinkingConfig(Fields):
    """Thoughts before the answer."""

    type: str
    budget_tokens: Annotated[int | None, Field(ge=0, description="Maximum tokens of a thought."), WHOLE] = (
        None
    )


class JSONFormat(BaseModel):
    """The answer is JSON."""

    model_config = ConfigDict(extra="ignore", strict=True, populate_by_name=True)

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Fields):
    """Options of the answer."""

    effort: Effort | None = None
    format: JSONFormat | None = None


class CountRequest(SamplingFields):
    """The body of ``POST /v1/messages/count_tokens``."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: ModelName = None
    messages: Annotated[list[MessageParam], Field(min_length=1, max_length=8192)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[ToolParam] | None, Field(max_length=256)] = None
    tool_choice: ToolChoice | None = None
    thinking: Annotated[ThinkingConfig | None, Field(description="Default: no thoughts.")] = None
    output_config: OutputConfig | None = None
    output_format: JSONFormat | None = None
    stop_sequences: Annotated[list[StopString] | None, Field(max_length=16)] = None
    context: Annotated[str | None, Field(description="Context to use. Default: CONTEXT_TYPE.")] = None

    @model_validator(mode="after")
    def _check(self) -> CountRequest:
        check_distinct(tool.name for tool in self.tools or () if tool.type in (None, "custom"))
        for name in sorted((self.model_extra or {}).keys() - _HARMLESS):
            warn_once(ROUTE, f"the field {name[:64]!r}")
        return self

    @property
    def format(self) -> JSONFormat | None:
        """Format of the answer."""
        return (self.output_config.format if self.output_config else None) or self.output_format

    def thoughts(self) -> ThinkingUse:
        config = self.thinking
        use = ThinkingUse(wanted=config is not None and config.type != "disabled")
        if config is None or not use.wanted:
            return use
        effort = self.output_config.effort if self.output_config else None
        return replace(use, effort=effort, budget=config.budget_tokens)


class MessagesRequest(CountRequest):
    """The body of ``POST /v1/messages``."""

    max_tokens: Annotated[int, Field(ge=1, description="Maximum tokens of thoughts and answer."), WHOLE]
    stream: bool | None = None

    def overrides(self) -> dict[str, Any]:
        """The fields of SamplingParams that the request sets."""
        fields = self.sampling() | {"max_tokens": self.max_tokens}
        return fields | ({"stop": tuple(self.stop_sequences)} if self.stop_sequences else {})
