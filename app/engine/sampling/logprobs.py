"""Log-probabilities of tokens, by the model's own logits: before bias, penalties, temperature and cuts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Logprobs:
    """What the model thought of a token, and which it thought likeliest in its place.

    Attributes:
        chosen: The natural logarithm of the token's probability.
        top: The likeliest tokens and their logarithms, likeliest first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


def logprobs_of(logits: NDArray[np.float32], token: int, n_top: int) -> Logprobs:
    """The log-softmax of a row of logits, at ``token`` and at the ``n_top`` largest."""
    largest = float(logits.max())
    # In double precision: of 100,000 small terms single precision would lose some.
    log_sum = largest + float(np.log(np.exp(logits - largest, dtype=np.float64).sum()))
    top: tuple[tuple[int, float], ...] = ()
    if n_top:
        n_top = min(n_top, len(logits))
        ids = np.argpartition(logits, -n_top)[-n_top:]
        # Of equal ones the lower id goes first, as with a greedy choice.
        ids = ids[np.lexsort((ids, -logits[ids]))]
        top = tuple((int(t), float(logits[t]) - log_sum) for t in ids)
    return Logprobs(float(logits[token]) - log_sum, top)
