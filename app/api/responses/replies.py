"""Response bodies of the Responses API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(TypedDict):
    """Text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class MessageItem(TypedDict):
    """The answer's text."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Status
    content: list[OutputText]


class ReasoningText(TypedDict):
    """Text of a thought."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(TypedDict):
    """A thought before the answer."""

    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[Any]
    content: list[ReasoningText]


class CallItem(TypedDict):
    """A function call."""

    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: Annotated[str, Field(description="A JSON object as text.")]
    status: Status


OutputItem = MessageItem | ReasoningItem | CallItem


class InputTokensDetails(TypedDict):
    """Details of the prompt's tokens."""

    cached_tokens: Annotated[int, Field(description="Prompt tokens from the prefix cache.")]
    cache_write_tokens: int


class OutputTokensDetails(TypedDict):
    """Details of the generated tokens."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(TypedDict):
    """Reason for an incomplete response."""

    reason: Literal["max_output_tokens"]


class ResponseError(TypedDict):
    """Reason for a failed response."""

    code: str
    message: str


class ResponseObject(TypedDict):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: Annotated[int, Field(description="Seconds since 1970.")]
    status: Status
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    model: Annotated[str, Field(description="Name of the model that answered.")]
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, Any]
    store: bool
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Any
    tools: list[Any]
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponseUsage | None


class ResponseEvent(TypedDict):
    """An event of a stream. Its other fields depend on its type."""

    type: str
    sequence_number: int
    response: NotRequired[ResponseObject]
    output_index: NotRequired[int]
    content_index: NotRequired[int]
    item_id: NotRequired[str]
    item: NotRequired[OutputItem]
    part: NotRequired[OutputText | ReasoningText]
    delta: NotRequired[str]
    text: NotRequired[str]
    name: NotRequired[str]
    arguments: NotRequired[str]
    logprobs: NotRequired[list[Any]]


class Deleted(TypedDict):
    """A deleted response."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItems(TypedDict):
    """Items of the conversation before a response."""

    object: Literal["list"]
    data: Annotated[list[dict[str, Any]], Field(description="As in the input of a response.")]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(TypedDict):
    """Number of tokens of a prompt."""

    object: Literal["response.input_tokens"]
    input_tokens: int
