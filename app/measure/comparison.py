"""Comparison of two candidates by repeated measurements in pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from app.measure.measurer import TrialFailed
from app.measure.mix import Rates

Measure = Callable[[], Rates]

# Least gain of the mix, and most loss of one load, if the noise is lower.
_LEAST_GAIN = 0.02
_MOST_LOSS = 0.03
N_REPEATS = 3  # measurements of the default, for the noise
N_PAIRS = 4


@dataclass(frozen=True, slots=True)
class Noise:
    """Relative differences between repeated measurements of the same candidate.

    Attributes:
        mix: Of the mix of all loads.
        loads: Of each load.
    """

    mix: float
    loads: Mapping[str, float]

    @classmethod
    def of(cls, repeats: Sequence[Rates]) -> Noise:
        """The largest differences of measurements."""
        mixes = [gain(rates, repeats[0]) for rates in repeats]
        loads = {load: [math.log(rates[load]) for rates in repeats] for load in repeats[0]}
        return cls(max(mixes) - min(mixes), {load: max(logs) - min(logs) for load, logs in loads.items()})

    @property
    def margin(self) -> float:
        """Least gain of a better candidate."""
        return max(_LEAST_GAIN, self.mix)

    def tolerated(self, load: str) -> float:
        """Most loss of a load that counts as none."""
        return max(_MOST_LOSS, self.loads[load])


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result for a candidate.

    Attributes:
        ratios: Median speed of each load in relation to the other candidate; empty: it failed.
        gain: Median gain of the mix, as a logarithm.
        is_better: Whether it is faster by more than the noise, and no load is slower.
        reason: Reason for the result.
    """

    ratios: Mapping[str, float]
    gain: float
    is_better: bool
    reason: str

    @property
    def factor(self) -> float:
        """Speed of the mix in relation to the other candidate."""
        return math.exp(self.gain)


def gain(rates: Rates, other: Rates) -> float:
    """Mean logarithm of the ratios of all loads: each load counts the same."""
    return sum(math.log(rates[load] / other[load]) for load in rates) / len(rates)


def compare(
    measure: Measure, other: Measure, noise: Noise, *, n_pairs: int = N_PAIRS, is_late: Callable[[], bool]
) -> Comparison:
    """Compare a candidate with another one.

    Both are measured by turns, so that a slow change of the machine affects both. A candidate that is slower
    once is not better. So without a real gain, chance must favour it in every pair.

    Args:
        measure: Measures the candidate; raises TrialFailed.
        other: Measures the other one.
        noise: Of repeated measurements.
        n_pairs: Number of pairs for a better candidate.
        is_late: Whether no time is left for another pair.

    Raises:
        TrialFailed: The other one cannot be measured.
    """
    pairs: list[tuple[Rates, Rates]] = []
    while len(pairs) < n_pairs:
        if pairs and is_late():
            return _result(pairs, "not enough time")
        reference = other() if len(pairs) % 2 == 0 else None
        try:
            rates = measure()
        except TrialFailed as error:
            return Comparison({}, -math.inf, False, f"failed: {error}")
        pairs.append((rates, reference or other()))
        gains = [gain(*pair) for pair in pairs]
        if gains[-1] <= 0:
            return _result(pairs, "slower" if max(gains) < 0 else "not faster each time")
        if len(pairs) > 1 and max(gains) <= noise.margin:
            return _result(pairs, _within(noise))
    return _judged(pairs, noise)


def _judged(pairs: Sequence[tuple[Rates, Rates]], noise: Noise) -> Comparison:
    found = _result(pairs, "faster")
    slower = [load for load, ratio in found.ratios.items() if math.log(ratio) < -noise.tolerated(load)]
    if found.gain <= noise.margin:
        return _result(pairs, _within(noise))
    if slower:
        return _result(pairs, f"{slower[0]} is slower")
    return Comparison(found.ratios, found.gain, True, found.reason)


def _within(noise: Noise) -> str:
    return f"within {noise.margin:.1%} of noise"


def _result(pairs: Sequence[tuple[Rates, Rates]], reason: str) -> Comparison:
    ratios = {load: median(rates[load] / other[load] for rates, other in pairs) for load in pairs[0][0]}
    return Comparison(ratios, median(gain(*pair) for pair in pairs), False, reason)
