"""Response bodies of the Ollama dialect. A line of a stream has the type of a complete body."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

_Nanoseconds = Annotated[int, Field(description="In ns.")]


class OllamaTokenLogprob(TypedDict):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(OllamaTokenLogprob):
    """A token of the answer and its alternatives."""

    top_logprobs: list[OllamaTokenLogprob]


class Answer(TypedDict):
    """Fields of all answers. The figures are in the last line of a stream."""

    model: Annotated[str, Field(description="Name of the model that answered.")]
    created_at: Annotated[str, Field(description="Time in RFC 3339.")]
    done: bool
    done_reason: NotRequired[Literal["stop", "length", "load", "unload"]]
    total_duration: NotRequired[_Nanoseconds]
    load_duration: NotRequired[_Nanoseconds]
    prompt_eval_count: NotRequired[Annotated[int, Field(description="Tokens of the prompt.")]]
    prompt_eval_duration: NotRequired[_Nanoseconds]
    eval_count: NotRequired[Annotated[int, Field(description="Tokens of the answer.")]]
    eval_duration: NotRequired[_Nanoseconds]
    logprobs: NotRequired[list[ChosenLogprob]]


class ReplyFunction(TypedDict):
    """Function and arguments of a tool call."""

    index: int
    name: str
    arguments: dict[str, Any]


class ReplyToolCall(TypedDict):
    """A complete tool call."""

    id: str
    function: ReplyFunction


class ReplyMessage(TypedDict):
    """A message, or a part of it."""

    role: Literal["assistant"]
    content: str
    thinking: NotRequired[str]
    tool_calls: NotRequired[list[ReplyToolCall]]


class ChatReply(Answer):
    """The answer to a conversation, or a part of it."""

    message: ReplyMessage


class GenerateReply(Answer):
    """The answer to a prompt, or a part of it."""

    response: str
    thinking: NotRequired[str]


class EmbedReply(TypedDict):
    """A vector of length 1 for each text."""

    model: str
    embeddings: list[list[float]]
    total_duration: _Nanoseconds
    load_duration: _Nanoseconds
    prompt_eval_count: int


class EmbeddingReply(TypedDict):
    """The vector of a text, of length 1."""

    embedding: list[float]


class OllamaDetails(TypedDict):
    """Properties of a model file."""

    parent_model: str
    format: Literal["gguf"]
    family: Annotated[str, Field(description="Architecture.")]
    families: list[str]
    parameter_size: str
    quantization_level: str


class OllamaModelEntry(TypedDict):
    """A model of this server."""

    name: str
    model: str
    modified_at: str
    size: Annotated[int, Field(description="Bytes.")]
    digest: Annotated[str, Field(description="Identifies the model file.")]
    details: OllamaDetails


class OllamaModelList(TypedDict):
    """The models of this server."""

    models: list[OllamaModelEntry]


class RunningModel(OllamaModelEntry):
    """A loaded model."""

    expires_at: str
    size_vram: int
    context_length: int


class RunningModels(TypedDict):
    """The loaded models."""

    models: list[RunningModel]


class Shown(TypedDict):
    """A model and its capabilities."""

    modelfile: str
    parameters: str
    template: Annotated[str, Field(description="The chat template, in Jinja.")]
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[Literal["completion", "tools", "insert", "thinking", "embedding"]]
    modified_at: str


class Version(TypedDict):
    """Version of Ollama's API that the routes follow."""

    version: str


class PullStatus(TypedDict):
    """State of a pull."""

    status: str
