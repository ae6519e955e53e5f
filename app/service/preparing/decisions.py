"""Decisions: questions about a state, and their answers with probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.service.errors import ServiceError

MOST_QUESTIONS = 400
MOST_OPTIONS = 255

Content = str | dict[str, Any] | list[Any]


@dataclass(frozen=True, slots=True)
class Option:
    """A possible answer. Without a description, its name alone describes it."""

    name: str
    description: Content | None = None


@dataclass(frozen=True, slots=True)
class DecisionQuestion:
    """A question with its options.

    Attributes:
        instructions: Text of the question. None: the options describe it.
        options: At least one.
        field: Name of the request's field, for error messages.
        answers_by_name: The names, such as Yes and No, are answers themselves. If not, labels stand for them.
    """

    instructions: Content | None
    options: tuple[Option, ...]
    field: str
    answers_by_name: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a question.

    Attributes:
        probabilities: Of each option. Their sum is 1.
        label_mass: Probability of all options before they are scaled to 1. A low value shows
            that another reply was more probable.
    """

    probabilities: list[float]
    label_mass: float

    @property
    def best(self) -> int:
        """Index of the most probable option."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        """The highest probability."""
        return max(self.probabilities)


@dataclass(frozen=True, slots=True)
class Decisions:
    """The answers to a request.

    Attributes:
        model: Name of the model.
        answers: For each question, its decision, or the reason why there is none.
        n_input: Tokens of the state, once, and of all questions.
        n_cached: Of these, tokens from the prefix cache.
        n_written: Tokens of the state that the prefix cache got.
    """

    model: str
    answers: list[Decision | ServiceError]
    n_input: int
    n_cached: int
    n_written: int


def rendered(content: Content) -> str:
    """A text as it is, other JSON in a canonical form: equal values have equal tokens."""
    if isinstance(content, str):
        return content
    return json.dumps(content, ensure_ascii=False, sort_keys=True, indent=1)


def decision_of(logprobs: Sequence[float]) -> Decision:
    """Scale probabilities to a sum of 1."""
    highest = max(logprobs)
    weights = [math.exp(logprob - highest) for logprob in logprobs]
    total = sum(weights)
    return Decision([weight / total for weight in weights], min(1.0, total * math.exp(highest)))
