"""What the OpenAI dialect sends. Clients have models of their own: these describe, they do not encode."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.api.http.sources import Source

# A list that is left out where it would be empty.
_MAY_BE_MISSING: Any = Field(default_factory=list)
_SOURCES: Any = Field(
    default_factory=list,
    description="The passages of documents that the answer draws on, best first (of a stream, in its first "
    "chunk); missing where there are none.",
)


class PromptTokensDetails(BaseModel):
    """Of the tokens of a prompt."""

    cached_tokens: Annotated[int, Field(description="Taken over from a prefix that was known.")]


class Usage(BaseModel):
    """The tokens of a request; each prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Envelope(BaseModel):
    """What every answer and every chunk of a stream says."""

    id: str
    created: Annotated[int, Field(description="Seconds since 1970.")]
    model: Annotated[str, Field(description="The model that answered, whatever name was asked for.")]
    system_fingerprint: Annotated[
        str, Field(description="Another one when the model, the library or the sampling changes.")
    ]


# --- chat completions


class TokenLogprob(BaseModel):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenLogprob(TokenLogprob):
    """A token of the answer, and what could have been in its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """The log-probabilities of an answer, or of a part of it."""

    content: list[ChosenTokenLogprob]
    refusal: None


class CalledFunction(BaseModel):
    """Which function is to be called, and with what."""

    name: str
    arguments: Annotated[str, Field(description="A JSON object as text.")]


class ToolCall(BaseModel):
    """A call that the model wants made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(BaseModel):
    """The answer to a conversation."""

    role: Literal["assistant"]
    content: Annotated[str | None, Field(description="null where tools are called instead.")]
    refusal: None
    tool_calls: list[ToolCall] = _MAY_BE_MISSING


class ChatChoice(BaseModel):
    """One of the answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Envelope):
    """The answers to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    sources: list[Source] = _SOURCES


class FunctionDelta(BaseModel):
    """The name comes first, then the arguments piece by piece."""

    name: str = ""
    arguments: str


class ToolCallDelta(BaseModel):
    """A piece of a call; the first has its id and the name of the function."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionDelta


class Delta(BaseModel):
    """What a chunk adds to a message."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    refusal: None = None
    tool_calls: list[ToolCallDelta] = _MAY_BE_MISSING


class ChatChoiceDelta(BaseModel):
    """What a chunk adds to one of the answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Annotated[
        Literal["stop", "length", "tool_calls"] | None, Field(description="In the last chunk of a choice.")
    ]


class ChatCompletionChunk(Envelope):
    """A part of the answers to a conversation."""

    object: Literal["chat.completion.chunk"]
    choices: Annotated[list[ChatChoiceDelta], Field(description="Empty in the chunk that has the usage.")]
    usage: Annotated[Usage | None, Field(description="With `stream_options.include_usage` alone.")] = None
    sources: list[Source] = _SOURCES


# --- completions


class CompletionLogprobs(BaseModel):
    """The log-probabilities of a text, or of a part of it: a list entry for each of its tokens."""

    tokens: list[str]
    token_logprobs: Annotated[list[float | None], Field(description="null for the first of a prompt.")]
    top_logprobs: Annotated[
        list[dict[str, float] | None] | None, Field(description="null where `logprobs` is 0.")
    ]
    text_offset: Annotated[list[int], Field(description="Where each token begins, in characters.")]


class CompletionChoice(BaseModel):
    """One of the texts."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Envelope):
    """The texts that prompts were completed with."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChoiceDelta(BaseModel):
    """What a chunk adds to one of the texts."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Annotated[
        Literal["stop", "length"] | None, Field(description="In the last chunk of a choice.")
    ]


class CompletionChunk(Envelope):
    """A part of the texts."""

    object: Literal["text_completion"]
    choices: Annotated[
        list[CompletionChoiceDelta], Field(description="Empty in the chunk that has the usage.")
    ]
    usage: Annotated[Usage | None, Field(description="With `stream_options.include_usage` alone.")] = None


# --- models


class Model(BaseModel):
    """A model that answers here."""

    id: str
    object: Literal["model"]
    created: Annotated[int, Field(description="When its file was made, in seconds since 1970.")]
    owned_by: str
    max_model_len: Annotated[
        int, Field(description="The most tokens of prompt and answer together, or of a text.")
    ]


class ModelList(BaseModel):
    """The models that answer here."""

    object: Literal["list"]
    data: list[Model]


# --- errors


class OpenAIError(BaseModel):
    """Why there is no answer."""

    message: str
    type: str
    param: Annotated[str | None, Field(description="The field at fault.")]
    code: str | None


class OpenAIErrorResponse(BaseModel):
    """An error in OpenAI's shape."""

    error: OpenAIError
