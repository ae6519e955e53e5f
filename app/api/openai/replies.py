"""Response bodies of the OpenAI dialect."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from app.api.http.choices import LabelMass, Probabilities
from app.api.http.sources import Source, Waiting

Sources = Annotated[
    list[Source],
    Field(
        description="Passages of documents in the prompt, best first. In a stream, in the first chunk. "
        "Missing if there are none."
    ),
]


class PromptTokensDetails(TypedDict):
    """Details of the prompt's tokens."""

    cached_tokens: Annotated[int, Field(description="Prompt tokens from the prefix cache.")]


class CompletionTokensDetails(TypedDict):
    """Details of the generated tokens."""

    reasoning_tokens: Annotated[int, Field(description="Tokens of thoughts.")]


class Usage(TypedDict):
    """Tokens of a request. Each prompt counts once, independent of its number of choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class Envelope(TypedDict):
    """Fields of every body and of every chunk."""

    id: str
    created: Annotated[int, Field(description="Seconds since 1970.")]
    model: Annotated[str, Field(description="Name of the model that answered.")]
    system_fingerprint: Annotated[
        str, Field(description="Identifies the model, the library and the sampling code.")
    ]


# --- chat completions


class TokenLogprob(TypedDict):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenLogprob(TokenLogprob):
    """A token of the answer and its alternatives."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(TypedDict):
    """Log-probabilities of an answer, or of a part of it."""

    content: list[ChosenTokenLogprob]
    refusal: None


class CalledFunction(TypedDict):
    """Function and arguments of a tool call."""

    name: str
    arguments: Annotated[str, Field(description="A JSON object as text.")]


class ToolCall(TypedDict):
    """A function call in the answer."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(TypedDict):
    """The answer to a conversation."""

    role: Literal["assistant"]
    content: Annotated[str | None, Field(description="null if the answer only calls tools.")]
    refusal: None
    tool_calls: NotRequired[list[ToolCall]]
    reasoning_content: NotRequired[Annotated[str, Field(description="Thoughts before the answer.")]]
    reasoning: NotRequired[Annotated[str, Field(description="Same as `reasoning_content`.")]]


ChatFinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason


class ChatCompletion(Envelope):
    """The answers to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    sources: NotRequired[Sources]
    sources_waiting: NotRequired[Waiting]
    probabilities: NotRequired[Probabilities]
    label_mass: NotRequired[LabelMass]


class FunctionDelta(TypedDict):
    """Part of a tool call: the name first, then the arguments in parts."""

    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    """Part of a tool call. The first part has the id and the name of the function."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class MessageDelta(TypedDict, total=False):
    """Addition of a chunk to an answer."""

    role: Literal["assistant"]
    content: str
    refusal: None
    tool_calls: list[ToolCallDelta]
    reasoning_content: str
    reasoning: str


class ChatChoiceDelta(TypedDict):
    """Part of one answer."""

    index: int
    delta: MessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: Annotated[ChatFinishReason | None, Field(description="In the last chunk of a choice.")]


class ChatCompletionChunk(Envelope):
    """Part of the answers to a conversation."""

    object: Literal["chat.completion.chunk"]
    choices: Annotated[list[ChatChoiceDelta], Field(description="Empty in the chunk with the usage.")]
    usage: NotRequired[Annotated[Usage | None, Field(description="With `stream_options.include_usage`.")]]
    sources: NotRequired[Sources]
    sources_waiting: NotRequired[Waiting]
    probabilities: NotRequired[Probabilities]
    label_mass: NotRequired[LabelMass]


# --- completions


class CompletionLogprobs(TypedDict):
    """Log-probabilities of a text, or of a part of it: one list entry per token."""

    tokens: list[str]
    token_logprobs: Annotated[list[float | None], Field(description="null for the first token of a prompt.")]
    top_logprobs: Annotated[
        list[dict[str, float] | None] | None, Field(description="null if `logprobs` is 0.")
    ]
    text_offset: Annotated[list[int], Field(description="Start of each token, in characters.")]


CompletionFinishReason = Literal["stop", "length"]


class CompletionChoice(TypedDict):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: CompletionFinishReason


class Completion(Envelope):
    """The completed texts."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChoiceDelta(TypedDict):
    """Part of one text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Annotated[
        CompletionFinishReason | None, Field(description="In the last chunk of a choice.")
    ]


class CompletionChunk(Envelope):
    """Part of the texts."""

    object: Literal["text_completion"]
    choices: Annotated[list[CompletionChoiceDelta], Field(description="Empty in the chunk with the usage.")]
    usage: NotRequired[Annotated[Usage | None, Field(description="With `stream_options.include_usage`.")]]
