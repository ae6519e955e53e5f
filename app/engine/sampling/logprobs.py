"""Log-probabilities of tokens from the raw logits: before bias, penalties, temperature and truncation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities (natural logarithm) at one position.

    Attributes:
        chosen: Log-probability of the token at this position.
        top: The most likely tokens and their log-probabilities, in descending order.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


def logprobs_of(logits: NDArray[np.float32], token: int, n_top: int) -> Logprobs:
    """The log-softmax of a row of logits, at ``token`` and at the ``n_top`` largest."""
    largest = float(logits.max())
    # Double precision: a single-precision sum of 100,000 small terms loses digits.
    log_sum = largest + float(np.log(np.exp(logits - largest, dtype=np.float64).sum()))
    top: tuple[tuple[int, float], ...] = ()
    if n_top:
        n_top = min(n_top, len(logits))
        ids = np.argpartition(logits, -n_top)[-n_top:]
        # Ties go to the lower id, as in greedy sampling.
        ids = ids[np.lexsort((ids, -logits[ids]))]
        top = tuple((int(t), float(logits[t]) - log_sum) for t in ids)
    return Logprobs(float(logits[token]) - log_sum, top)
