"""Response bodies of the operator's routes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from app.service import State


class Contexts(TypedDict):
    """The contexts of the server."""

    default: Annotated[str, Field(description="Context of requests without the field `context`.")]
    contexts: list[str]
    model: Annotated[str, Field(description="Name of the model; empty while it is loading.")]
    knowledge: Annotated[bool, Field(description="Whether the knowledge base is on.")]
    uploads: Annotated[bool, Field(description="Whether the client may store documents.")]
    with_documents: Annotated[
        list[str],
        Field(description="Contexts that use the knowledge base by default."),
    ]
    prompts: Annotated[
        dict[str, str],
        Field(description="System prompts of the contexts that the key allows."),
    ]
    is_small: Annotated[
        bool,
        Field(description="Whether the model has less than 500 MB: its answers are often wrong."),
    ]
    stats: Annotated[bool, Field(description="Whether `/stats` is served at this address.")]
    max_total_tokens: Annotated[
        int, Field(description="Maximum tokens of prompt plus answer; 0 while the model is loading.")
    ]
    thinks: Annotated[bool, Field(description="Whether the model has thoughts before its answers.")]
    refused: Annotated[
        dict[str, str],
        Field(description="Contexts that the model rejects, with the reasons."),
    ]
    problem: Annotated[
        str | None,
        Field(description="Why a change of CONTEXTS_FILE is not in use; null: the file is in use."),
    ]


class Stats(TypedDict):
    """The state of the engine, and requests."""

    time: Annotated[float, Field(description="In seconds since 1970.")]
    model: Annotated[str, Field(description="Name of the model; empty while it is loading.")]
    figures: Annotated[
        dict[str, float],
        Field(
            description="Metrics by their names in `/metrics`, with the value of a label after a dot. "
            "Those of several models are added."
        ),
    ]
    requests: Annotated[
        list[dict[str, str | float]],
        Field(
            description="Fields of the log lines of the last 20 POST and PUT requests, without texts. "
            "In a stream: of those since the event before."
        ),
    ]


class Health(TypedDict):
    """The process serves requests."""

    status: Literal["ok"]


class Ready(TypedDict):
    """The model is loaded and its contexts are prefilled."""

    status: Literal["ready"]
    models: NotRequired[Annotated[dict[str, State], Field(description="Several models by name.")]]
    contexts_problem: NotRequired[
        Annotated[str, Field(description="Why a change of CONTEXTS_FILE is not in use.")]
    ]
    contexts_refused: NotRequired[
        Annotated[dict[str, str], Field(description="Contexts that the model rejects, with the reasons.")]
    ]


class Loading(TypedDict):
    """The model is loading."""

    status: Literal["loading"]
    stage: Annotated[str, Field(description="Current part of the start, such as the download of a file.")]
    progress: Annotated[float | None, Field(description="Its completed share, from 0 to 1; null: unknown.")]


class Failed(TypedDict):
    """The engine or the embedding model failed. The process then exits."""

    status: Literal["failed"]
    reason: Annotated[str, Field(description="Error message of the engine or the embedding model.")]
