"""Response bodies of the Messages API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextReply(TypedDict):
    """Text of the answer."""

    type: Literal["text"]
    text: str


class ThinkingReply(TypedDict):
    """A thought before the answer."""

    type: Literal["thinking"]
    thinking: str
    signature: Annotated[str, Field(description="Always empty.")]


class ToolUseReply(TypedDict):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


Block = TextReply | ThinkingReply | ToolUseReply


class MessageOutputDetails(TypedDict):
    """Details of the generated tokens."""

    thinking_tokens: int


class MessagesUsage(TypedDict):
    """Tokens of a message."""

    input_tokens: Annotated[int, Field(description="Prompt tokens that are not from the prefix cache.")]
    cache_read_input_tokens: Annotated[int, Field(description="Prompt tokens from the prefix cache.")]
    cache_creation_input_tokens: int
    output_tokens: int
    output_tokens_details: MessageOutputDetails


class MessageReply(TypedDict):
    """The answer to a conversation."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: Annotated[str, Field(description="Name of the model that answered.")]
    content: list[Block]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessagesUsage


class MessageEvent(TypedDict):
    """An event of a stream. Its other fields depend on its type."""

    type: str
    message: NotRequired[MessageReply]
    index: NotRequired[int]
    content_block: NotRequired[Block]
    delta: NotRequired[dict[str, Any]]
    usage: NotRequired[MessagesUsage]


class TokenCount(TypedDict):
    """Number of tokens of a prompt."""

    input_tokens: int
