"""What ``/token_stream`` and the operational routes send, described for the API's documentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.api.http.sources import Source


class Figures(BaseModel):
    """The line that ends an answer of ``/token_stream`` with ``details``."""

    finish_reason: Literal["length", "eos_token", "stop_sequence"]
    prompt_tokens: int
    cached_tokens: Annotated[int, Field(description="Of the prompt's, those taken over from a known prefix.")]
    generated_tokens: int
    time_to_first_token: Annotated[float, Field(description="Seconds.")]
    tokens_per_second: float
    sources: Annotated[
        list[Source],
        Field(description="What the answer draws on, best first; missing where that is nothing."),
    ] = []


class Contexts(BaseModel):
    """The contexts that requests may name."""

    default: Annotated[str, Field(description="The context of requests that name none.")]
    contexts: list[str]
    model: Annotated[str, Field(description="What answers; empty while it is loading.")]
    knowledge: Annotated[bool, Field(description="Whether there is a knowledge base to draw on.")]
    with_documents: Annotated[
        list[str],
        Field(description="The contexts whose answers draw on it where a request does not say."),
    ]
    refused: Annotated[
        dict[str, str],
        Field(description="Contexts that the chat template refuses, with its error messages."),
    ]


class Health(BaseModel):
    """The process serves."""

    status: Literal["ok"]


class Ready(BaseModel):
    """The model is loaded and its contexts are prefilled."""

    status: Literal["ready"]


class Failed(BaseModel):
    """The engine failed. The process ends by itself."""

    status: Literal["failed"]
    reason: str


class NotReady(BaseModel):
    """The model is still loading, or the engine failed."""

    status: Literal["loading", "failed"]
    reason: Annotated[str, Field(description="Error message of the engine; missing while loading.")] = ""


class Problem(BaseModel):
    """Why a request is not answered."""

    error: Annotated[str, Field(description="A sentence that names field, value and what is allowed.")]
    error_type: Annotated[str, Field(description="The same in one word.")]
