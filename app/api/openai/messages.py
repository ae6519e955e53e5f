"""Messages and tools in request bodies of the OpenAI dialect."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FUNCTION_NAME = r"^[A-Za-z0-9_.-]{1,128}$"


class Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class TextPart(Part):
    """A text part of a message."""

    type: Literal["text"]
    text: str


class RefusalPart(Part):
    """A refusal of the assistant."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class FunctionCall(Part):
    """A function and its arguments."""

    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    arguments: Annotated[str, Field(description="A JSON object as text.")]


class MessageToolCall(Part):
    """A tool call of the assistant."""

    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(BaseModel):
    """A message of a conversation."""

    # Clients return all fields of an assistant's message, such as annotations.
    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]] | None = None
    name: Annotated[
        str | None, Field(max_length=256, description="Of a function. The names of others are ignored.")
    ] = None
    tool_calls: list[MessageToolCall] | None = None
    function_call: Annotated[FunctionCall | None, Field(description="Older form of `tool_calls`.")] = None
    tool_call_id: str | None = None
    reasoning_content: Annotated[str | None, Field(description="The assistant's thoughts.")] = None
    reasoning: Annotated[str | None, Field(description="Same as `reasoning_content`.")] = None

    @model_validator(mode="after")
    def _is_whole(self) -> ChatMessage:
        if self.content is None and self.role != "assistant":
            raise ValueError("content is required")
        if self.calls and self.role != "assistant":
            raise ValueError("tool_calls belong to the assistant")
        if self.role == "function" and self.name is None:
            raise ValueError("name is required")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("tool_call_id is required")
        return self

    @property
    def calls(self) -> list[MessageToolCall]:
        """The tool calls. A call in the older form has the id of its name, as its result has."""
        older = self.function_call
        return self.tool_calls or ([MessageToolCall(id=older.name, function=older)] if older else [])

    @property
    def thoughts(self) -> str:
        return self.reasoning_content or self.reasoning or ""

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class FunctionDefinition(Part):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=FUNCTION_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Part):
    """A tool. Only functions are supported."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Part):
    """The function to call."""

    name: str


class NamedToolChoice(Part):
    """The tool that the model must call."""

    type: Literal["function"] = "function"
    function: FunctionName


class AllowedTools(Part):
    """The tools that the model may call."""

    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedToolChoice]


class AllowedToolsChoice(Part):
    """A restriction to some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools
