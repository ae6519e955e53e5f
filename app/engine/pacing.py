"""Prefill chunk sizes from measured step times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# Weight of the newest step in the line of prefill costs: about one long prompt beside streams counts.
_WEIGHT = 0.1
# Weights of a shorter and of a longer decode step. Work of other threads lengthens single steps.
_FASTER, _SLOWER = 0.8, 0.05
# Variance of positions below which a slope is noise.
_MIN_SPREAD = 64.0**2
# Minimum prefill chunk. Each pass reads all weights, which takes as long as computing about six tokens.
MIN_CHUNK = 32
_ROUND_TO = 16
# Maximum seconds of a step while no answer streams. Requests are admitted and cancelled between steps.
PREFILL_SECONDS = 0.5
# Default maximum of a step while answers stream: 60 ms, or four decode steps if that is longer.
_MIN_BUDGET = 0.060
_BUDGET_IN_STEPS = 4


@dataclass(slots=True)
class PrefillCost:
    """Seconds per prompt token as a line over its position: attention reads all tokens before it.

    Least squares, in which older chunks count exponentially less.
    """

    _seconds: float | None = None  # moving averages: seconds per token
    _position: float = 0.0
    _variance: float = 0.0
    _covariance: float = 0.0

    def observe(self, seconds: float, position: float) -> None:
        """Record a chunk: its seconds per token, and the mean position of its tokens."""
        if self._seconds is None:
            self._seconds, self._position = seconds, position
            return
        # West 1979, with a constant weight.
        right, above = position - self._position, seconds - self._seconds
        self._position += _WEIGHT * right
        self._seconds += _WEIGHT * above
        self._variance = (1 - _WEIGHT) * (self._variance + _WEIGHT * right * right)
        self._covariance = (1 - _WEIGHT) * (self._covariance + _WEIGHT * right * above)

    @property
    def mean(self) -> float | None:
        """Seconds per token of recent chunks. None: not measured."""
        return self._seconds

    @property
    def slope(self) -> float:
        """Additional seconds per token and position."""
        return max(self._covariance, 0.0) / (self._variance + _MIN_SPREAD)

    def at(self, position: float) -> float:
        """Expected seconds of a token. 1 ms before a measurement."""
        if self._seconds is None:
            return 0.001
        return max(self._seconds + self.slope * (position - self._position), 0.25 * self._seconds)

    def n_tokens(self, seconds: float, position: int) -> float:
        """Number of tokens from ``position`` on that take ``seconds``."""
        first, slope = self.at(position), self.slope
        # n · first + n² · slope / 2 = seconds, without the cancellation of the usual formula.
        return 2 * seconds / (first + math.sqrt(first * first + 2 * slope * seconds)) if seconds > 0 else 0.0


@dataclass(slots=True)
class Pacing:
    """Sizes prefill chunks by measured step times.

    Attributes:
        itl_budget: Maximum seconds of a step while answers stream. None: derived from the time of steps
            without prefill.
        streams_elsewhere: Whether answers of another engine stream, which wait for each step of this one.
    """

    itl_budget: float | None = None
    streams_elsewhere: Callable[[], bool] = lambda: False
    _decode_seconds: dict[int, float] = field(default_factory=dict)  # by number of decoding sequences
    _had_prefill: bool = True  # the last pass
    _has_decoded: bool = False  # a decode step after another one is measured
    _cost: PrefillCost = field(default_factory=PrefillCost)  # without decodes of the same step
    _is_settled: bool = False  # at least two prefills are measured

    def observe(self, seconds: float, n_decoding: int, n_prefill: int, position: float = 0.0) -> None:
        """Record the time of one pass.

        Args:
            seconds: Its time.
            n_decoding: Number of decoding sequences.
            n_prefill: Number of prompt tokens.
            position: Their mean position.
        """
        is_first, self._had_prefill = self._had_prefill, n_prefill > 0
        if n_prefill == 0:
            # The first decode step takes up to twice as long: the answer to the prefill begins beside it.
            self._has_decoded = self._has_decoded or not is_first
            before = self._decode_seconds.get(n_decoding, seconds)
            weight = _FASTER if seconds < before else 0.0 if is_first else _SLOWER
            self._decode_seconds[n_decoding] = before + weight * (seconds - before)
        elif n_prefill >= MIN_CHUNK:
            if not self._is_settled:
                # The first prefill also reads the weights from disk. The second one replaces its time.
                self._is_settled = self._cost.mean is not None
                self._cost = PrefillCost()
            beyond = max(seconds - self.decode_seconds(n_decoding), 0.1 * seconds)
            self._cost.observe(beyond / n_prefill, position)

    def decode_seconds(self, n_decoding: int) -> float:
        """Expected seconds of a step with ``n_decoding`` sequences and no prefill. 0: not measured."""
        if n_decoding == 0 or not self._decode_seconds:
            return 0.0
        nearest = min(self._decode_seconds, key=lambda n: abs(n - n_decoding))
        return self._decode_seconds[nearest]

    def measured_decode_seconds(self, n_decoding: int) -> float:
        """Measured seconds of a step with exactly ``n_decoding`` sequences and no prefill; 0: none."""
        return self._decode_seconds.get(n_decoding, 0.0)

    @property
    def prefill_seconds_per_token(self) -> float:
        """Mean seconds of prefill per token. 1 ms before a measurement."""
        return 0.001 if self._cost.mean is None else self._cost.mean

    def chunk(self, n_decoding: Sequence[int], largest: int, position: int = 0) -> int:
        """Maximum prompt tokens of the next step.

        At least MIN_CHUNK, even over the budget. MIN_CHUNK until prefill is measured.

        Args:
            n_decoding: Number of decoding sequences in each pass of the step.
            largest: Maximum.
            position: Position of the first of these tokens.
        """
        decode = sum(map(self.decode_seconds, n_decoding))
        if not n_decoding and not self.streams_elsewhere():
            budget = 0.0 if self._cost.mean is None else PREFILL_SECONDS
        elif self.itl_budget is not None:
            budget = self.itl_budget
        else:
            budget = max(_MIN_BUDGET, _BUDGET_IN_STEPS * decode if self._has_decoded else 0.0)
        n_tokens = int(self._cost.n_tokens(budget - decode, position))
        return max(MIN_CHUNK, min(largest, n_tokens // _ROUND_TO * _ROUND_TO))
