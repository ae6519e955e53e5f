"""Fields about the choices of a context, or of a question."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

LabelMass = Annotated[
    float,
    Field(description="Probability of all options together, before they are scaled to a sum of 1."),
]
Probabilities = Annotated[dict[str, float], Field(description="Of each choice, if the context has choices.")]
