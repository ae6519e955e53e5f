"""Watermarks: generated text that a statistical test can detect (Kirchenbauer et al. 2023).

Each token seeds a pseudo-random split of the vocabulary for the next position. The tokens of one part are
"green" and get a higher logit. A detector repeats the splits and counts green tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# The prime in the seeds of the authors' code and TGI.
_KEY = 15_485_863


@dataclass(frozen=True, slots=True)
class Detection:
    """Result of a detection.

    Attributes:
        n_tokens: Number of tokens examined.
        n_green: Number of green ones.
        gamma: Expected share of green tokens in unmarked text.
    """

    n_tokens: int
    n_green: int
    gamma: float

    @property
    def z_score(self) -> float:
        """Excess of green tokens over the expectation, in standard deviations."""
        variance = self.n_tokens * self.gamma * (1 - self.gamma)
        return (self.n_green - self.gamma * self.n_tokens) / math.sqrt(variance) if variance else 0.0

    @property
    def p_value(self) -> float:
        """Probability of this or a higher z-score in unmarked text."""
        return math.erfc(self.z_score / math.sqrt(2)) / 2

    @property
    def highest_z_score(self) -> float:
        """The z-score if all tokens were green."""
        return math.sqrt(self.n_tokens * (1 - self.gamma) / self.gamma)


@dataclass(frozen=True, slots=True)
class Watermark:
    """Parameters of a watermark.

    Attributes:
        gamma: Share of green tokens in the vocabulary, between 0 and 1 (exclusive).
        delta: Added to the logits of green tokens.
    """

    gamma: float = 0.5
    delta: float = 2.0

    def green(self, previous: int, n_vocab: int) -> NDArray[np.bool_]:
        """Mask of the tokens that are green after ``previous``, shape (vocabulary,)."""
        # Raw bits, because numpy keeps them stable across versions, but not its distributions.
        bits = np.random.PCG64(_KEY * (previous + 1)).random_raw((n_vocab + 1) // 2)
        draws = bits.astype("<u8", copy=False).view("<u4")[:n_vocab]
        green: NDArray[np.bool_] = draws < np.uint32(self.gamma * 2**32)
        return green

    def mark(self, logits: NDArray[np.float32], previous: int) -> None:
        """Raise the logits of the tokens that are green after ``previous``, in place."""
        # A product, because addition under a mask is about 12 times as slow in numpy.
        logits += self.green(previous, len(logits)) * np.float32(self.delta)

    def detect(self, tokens: Sequence[int], n_vocab: int) -> Detection:
        """Count the green tokens of a text. Repeated pairs of tokens count once."""
        by_previous: dict[int, list[int]] = {}
        for previous, token in dict.fromkeys(pairwise(tokens)):
            by_previous.setdefault(previous, []).append(token)
        n_green = sum(int(self.green(p, n_vocab)[after].sum()) for p, after in by_previous.items())
        return Detection(sum(map(len, by_previous.values())), n_green, self.gamma)
