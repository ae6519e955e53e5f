"""How long steps take, and how much prefill they can bear for that."""

from __future__ import annotations

from dataclasses import dataclass, field

# Of an average over past steps, the weight of the newest.
_WEIGHT = 0.2
# A pass reads all weights once, which takes about as long as six tokens: in shorter chunks that would weigh.
LEAST_CHUNK = 32
_ROUND_TO = 16
# An inter-token latency that nobody feels, and what else a running stream bears: while others' prompts
# are prefilled, tokens come at a quarter of the usual rate.
_LEAST_BUDGET = 0.060
_BUDGET_IN_STEPS = 4


@dataclass(slots=True)
class Pacing:
    """Sizes chunks of prefill by the measured times of steps.

    Attributes:
        itl_budget: The longest step, in seconds, while streams run; None derives it from the time of
            steps without prefill.
    """

    itl_budget: float | None = None
    _decode_seconds: dict[int, float] = field(default_factory=dict)  # by the number of sequences
    _seconds_per_token: float | None = None  # of prefill, beyond the time of the decodes beside it

    def observe(self, seconds: float, n_decoding: int, n_prefill: int) -> None:
        """Take the time of one step."""
        if n_prefill == 0:
            self._decode_seconds[n_decoding] = _average(self._decode_seconds.get(n_decoding), seconds)
        elif n_prefill >= LEAST_CHUNK:
            beyond = max(seconds - self.decode_seconds(n_decoding), 0.1 * seconds)
            self._seconds_per_token = _average(self._seconds_per_token, beyond / n_prefill)

    def decode_seconds(self, n_decoding: int) -> float:
        """The expected time of a step with that many sequences and no prefill; 0 if nothing is known."""
        if n_decoding == 0 or not self._decode_seconds:
            return 0.0
        nearest = min(self._decode_seconds, key=lambda n: abs(n - n_decoding))
        return self._decode_seconds[nearest]

    @property
    def prefill_seconds_per_token(self) -> float:
        """The expected time of prefilling a token; a guess until one is measured."""
        return 0.001 if self._seconds_per_token is None else self._seconds_per_token

    def chunk(self, n_decoding: int, largest: int) -> int:
        """How many prompt tokens the next step may prefill beside ``n_decoding`` streams."""
        if n_decoding == 0:
            return largest
        decode = self.decode_seconds(n_decoding)
        budget = self.itl_budget
        if budget is None:
            budget = max(_LEAST_BUDGET, _BUDGET_IN_STEPS * decode)
        n_tokens = int((budget - decode) / self.prefill_seconds_per_token)
        return max(LEAST_CHUNK, min(largest, n_tokens // _ROUND_TO * _ROUND_TO))


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
