"""Prefill chunk sizes from measured step times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# Weight of the newest step in a moving average.
_WEIGHT = 0.2
# Minimum prefill chunk. Each pass reads all weights, which takes as long as computing about six tokens.
MIN_CHUNK = 32
_ROUND_TO = 16
# Maximum seconds of a step while no answer streams. Requests are admitted and cancelled between steps.
PREFILL_SECONDS = 0.5
# Default maximum of a step while answers stream: 60 ms, or four decode steps if that is longer.
_MIN_BUDGET = 0.060
_BUDGET_IN_STEPS = 4


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
    _seconds_per_token: float | None = None  # of prefill, without decodes of the same step
    _is_settled: bool = False  # at least two prefills are measured

    def observe(self, seconds: float, n_decoding: int, n_prefill: int) -> None:
        """Record the time of one pass."""
        if n_prefill == 0:
            self._decode_seconds[n_decoding] = _average(self._decode_seconds.get(n_decoding), seconds)
        elif n_prefill >= MIN_CHUNK:
            # The first prefill also reads the weights from disk. The second one replaces its time.
            before = self._seconds_per_token if self._is_settled else None
            self._is_settled = self._seconds_per_token is not None
            beyond = max(seconds - self.decode_seconds(n_decoding), 0.1 * seconds)
            self._seconds_per_token = _average(before, beyond / n_prefill)

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
        """Expected seconds of prefill per token. 1 ms before a measurement."""
        return 0.001 if self._seconds_per_token is None else self._seconds_per_token

    def chunk(self, n_decoding: Sequence[int], largest: int) -> int:
        """Maximum prompt tokens of the next step.

        At least MIN_CHUNK, even over the budget. MIN_CHUNK until prefill is measured.

        Args:
            n_decoding: Number of decoding sequences in each pass of the step.
            largest: Maximum.
        """
        decode = sum(map(self.decode_seconds, n_decoding))
        if not n_decoding and not self.streams_elsewhere():
            budget = 0.0 if self._seconds_per_token is None else PREFILL_SECONDS
        elif self.itl_budget is not None:
            budget = self.itl_budget
        else:
            budget = max(_MIN_BUDGET, _BUDGET_IN_STEPS * decode)
        n_tokens = int((budget - decode) / self.prefill_seconds_per_token)
        return max(MIN_CHUNK, min(largest, n_tokens // _ROUND_TO * _ROUND_TO))


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
