"""Watermarks: text that a count can tell from text that nobody marked (Kirchenbauer et al. 2023).

Before every token the one before it divides the vocabulary into a green and a red part, and green tokens
are made likelier. Whoever divides it again can count the green ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# The prime by which the authors' code, and TGI, seed their generators.
_KEY = 15_485_863


@dataclass(frozen=True, slots=True)
class Detection:
    """What was counted.

    Attributes:
        n_tokens: Tokens that were looked at.
        n_green: Those of them that are green.
        gamma: The share that would be green by chance.
    """

    n_tokens: int
    n_green: int
    gamma: float

    @property
    def z_score(self) -> float:
        """By how many standard deviations the green tokens are more than chance would have it."""
        variance = self.n_tokens * self.gamma * (1 - self.gamma)
        return (self.n_green - self.gamma * self.n_tokens) / math.sqrt(variance) if variance else 0.0

    @property
    def p_value(self) -> float:
        """The probability that a text that nobody marked has such a z-score or a higher one."""
        return math.erfc(self.z_score / math.sqrt(2)) / 2

    @property
    def highest_z_score(self) -> float:
        """The z-score that as many tokens would have if all were green."""
        return math.sqrt(self.n_tokens * (1 - self.gamma) / self.gamma)


@dataclass(frozen=True, slots=True)
class Watermark:
    """How text is marked.

    Attributes:
        gamma: The share of the vocabulary that is green, above 0 and below 1.
        delta: What is added to the logits of green tokens.
    """

    gamma: float = 0.5
    delta: float = 2.0

    def green(self, previous: int, n_vocab: int) -> NDArray[np.bool_]:
        """Which tokens are green after ``previous``, of the shape (vocabulary,)."""
        # Raw bits, which numpy keeps the same from version to version; a uniform draw it does not.
        bits = np.random.PCG64(_KEY * (previous + 1)).random_raw((n_vocab + 1) // 2)
        draws = bits.astype("<u8", copy=False).view("<u4")[:n_vocab]
        green: NDArray[np.bool_] = draws < np.uint32(self.gamma * 2**32)
        return green

    def mark(self, logits: NDArray[np.float32], previous: int) -> None:
        """Make the tokens that are green after ``previous`` likelier, in place."""
        # A product in between, because numpy adds under a mask a dozen times as slowly.
        logits += self.green(previous, len(logits)) * np.float32(self.delta)

    def detect(self, tokens: Sequence[int], n_vocab: int) -> Detection:
        """Count the green tokens of a text; a pair of tokens that comes again counts once."""
        by_previous: dict[int, list[int]] = {}
        for previous, token in dict.fromkeys(pairwise(tokens)):
            by_previous.setdefault(previous, []).append(token)
        n_green = sum(int(self.green(p, n_vocab)[after].sum()) for p, after in by_previous.items())
        return Detection(sum(map(len, by_previous.values())), n_green, self.gamma)
