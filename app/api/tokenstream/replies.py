"""Response bodies of ``/token_stream``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from app.api.http.choices import LabelMass, Probabilities
from app.api.http.sources import Source, Waiting


class Figures(TypedDict):
    """The last line of a response of ``/token_stream`` with ``details``."""

    finish_reason: Literal["length", "eos_token", "stop_sequence"]
    prompt_tokens: int
    cached_tokens: Annotated[int, Field(description="Prompt tokens from the prefix cache.")]
    generated_tokens: int
    thinking_tokens: Annotated[int, Field(description="Generated tokens of thoughts.")]
    time_to_first_token: Annotated[float, Field(description="Seconds.")]
    tokens_per_second: float
    probabilities: NotRequired[Probabilities]
    label_mass: NotRequired[LabelMass]
    sources: NotRequired[
        Annotated[
            list[Source],
            Field(description="Passages in the prompt, best first. Missing if there are none."),
        ]
    ]
    sources_waiting: NotRequired[Waiting]
