"""Log-probabilities of tokens from the raw logits: before bias, penalties, temperature and truncation."""

from __future__ import annotations

from dataclasses import dataclass

from app.engine.llama import Logits, top_tokens


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities (natural logarithm) at one position.

    Attributes:
        chosen: Log-probability of the token at this position.
        top: The most likely tokens and their log-probabilities, in descending order.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


def logprobs_of(logits: Logits, token: int, n_top: int) -> Logprobs:
    """The log-softmax of a row of logits, at ``token`` and at the ``n_top`` largest."""
    log_sum, top = top_tokens(logits, n_top)
    return Logprobs(float(logits[token]) - log_sum, tuple((t, float(logits[t]) - log_sum) for t in top))
