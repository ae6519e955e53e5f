"""Accuracy, log loss and calibration of probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EDGES = (0.0, 0.4, 0.6, 0.8, 0.9, 1.0)  # of the bins of confidence


def log_softmax(values: Floats) -> Floats:
    """Scale log-probabilities so that the probabilities of each row sum to 1."""
    shifted = values - values.max(axis=-1, keepdims=True)
    scaled: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return scaled


@dataclass(frozen=True, slots=True)
class Outcome:
    """Answers to cases, one entry each.

    Attributes:
        losses: Negative log-probabilities of the right options.
        confidences: Probabilities of the most probable options.
        hits: Whether the most probable option is right.
    """

    losses: Floats
    confidences: Floats
    hits: NDArray[np.bool_]

    @classmethod
    def of(cls, logprobs: Floats, right: Sequence[int]) -> Outcome:
        return cls(
            -logprobs[np.arange(len(right)), right],
            np.exp(logprobs.max(axis=1)),
            logprobs.argmax(axis=1) == np.array(right),
        )

    @classmethod
    def joined(cls, outcomes: Sequence[Outcome]) -> Outcome:
        """The cases of several tasks together."""
        return cls(
            np.concatenate([outcome.losses for outcome in outcomes]),
            np.concatenate([outcome.confidences for outcome in outcomes]),
            np.concatenate([outcome.hits for outcome in outcomes]),
        )

    @property
    def accuracy(self) -> float:
        return float(self.hits.mean())

    @property
    def log_loss(self) -> float:
        """Mean loss in nats."""
        return float(self.losses.mean())

    def bins(self) -> list[tuple[int, float, float]]:
        """For each bin of confidence: cases, their mean confidence, and the share of them that is right."""
        index = np.digitize(self.confidences, EDGES[1:-1])
        found = []
        for number in range(len(EDGES) - 1):
            chosen = index == number
            n = int(chosen.sum())
            confidence, share = (
                (float(self.confidences[chosen].mean()), float(self.hits[chosen].mean())) if n else (0.0, 0.0)
            )
            found.append((n, confidence, share))
        return found

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: the difference of confidence and share, weighted by cases."""
        total = len(self.losses)
        return sum(n * abs(confidence - share) for n, confidence, share in self.bins()) / total


def difference(losses: Floats, others: Floats) -> tuple[float, float]:
    """Mean difference of losses of the same cases, and its standard error."""
    differences = losses - others
    return float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences)))
