"""Search for settings that are faster on this machine: coordinate descent from the defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from app.measure.comparison import N_REPEATS, Comparison, Noise, compare
from app.measure.mix import Rates

Values = Mapping[str, Any]  # of settings by field name

_NONE = object()
_ROUNDS = 2  # over all settings: the best value of one may depend on others


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting and the values to try.

    Attributes:
        setting: Name of the field.
        values: May be computed while it is read.
    """

    setting: str
    values: Iterable[Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate, and its comparison with the best one before it."""

    values: Values
    comparison: Comparison


@dataclass(slots=True)
class Tuning:
    """Result of a search.

    Attributes:
        default: Median speed with the default values.
        noise: Differences between its measurements.
        rows: All candidates, in order.
        values: The best values that differ from the defaults; empty: none is faster.
        final: Comparison of the best values with the defaults; None: none is faster.
        is_complete: Whether the time was enough for all candidates.
    """

    default: Rates
    noise: Noise
    rows: list[Row] = field(default_factory=list)
    values: Values = field(default_factory=dict)
    final: Comparison | None = None
    is_complete: bool = True


class Search:
    """Changes one setting at a time, and keeps a value only if it is faster by more than the noise.

    At the end the kept values are compared with the defaults again. If they are not faster, none is kept.
    So the result is not slower than the defaults, within the noise.
    """

    def __init__(
        self,
        measure: Callable[[Values], Rates],
        *,
        is_late: Callable[[], bool],
        on_progress: Callable[[str], None],
    ) -> None:
        """Prepare a search.

        Args:
            measure: Measures values that differ from the defaults; raises TrialFailed.
            is_late: Whether no time is left.
            on_progress: Receives a description of the current measurement.
        """
        self._measure = measure
        self._is_late = is_late
        self._on_progress = on_progress
        self._tried: list[Values] = [{}]

    def run(self, choices: Iterable[Choice]) -> Tuning:
        """Search.

        Raises:
            TrialFailed: The defaults cannot be measured.
        """
        repeats = []
        for number in range(N_REPEATS):
            self._on_progress(f"default, {number + 1} of {N_REPEATS}")
            repeats.append(self._measure({}))
        medians = {load: median(rates[load] for rates in repeats) for load in repeats[0]}
        tuning = Tuning(medians, Noise.of(repeats))
        for _ in range(_ROUNDS):
            before = tuning.values
            choices = [Choice(choice.setting, self._try(choice, tuning)) for choice in choices]
            if tuning.values == before or not tuning.is_complete:
                break
        self._confirm(tuning)
        return tuning

    def _try(self, choice: Choice, tuning: Tuning) -> list[Any]:
        """Compare each value of a setting with the best values. Returns those that do not fail."""
        usable = []
        values = iter(choice.values)
        while tuning.is_complete:
            if self._is_late():  # before the next value is computed
                tuning.is_complete = False
                break
            if (value := next(values, _NONE)) is _NONE:
                break
            candidate = {**tuning.values, choice.setting: value}
            if candidate not in self._tried:
                self._tried.append(candidate)
                self._on_progress(described(candidate))
                found = self._compared(candidate, tuning.values, tuning.noise)
                tuning.rows.append(Row(candidate, found))
                if found.is_better:
                    tuning.values = candidate
                if not found.ratios:
                    continue
            usable.append(value)
        return usable

    def _confirm(self, tuning: Tuning) -> None:
        if tuning.values:
            self._on_progress(f"{described(tuning.values)}, compared with the default again")
            tuning.final = self._compared(tuning.values, {}, tuning.noise, in_time=False)
            if not tuning.final.is_better:
                tuning.values = {}

    def _compared(self, values: Values, other: Values, noise: Noise, *, in_time: bool = True) -> Comparison:
        return compare(
            lambda: self._measure(values),
            lambda: self._measure(other),
            noise,
            is_late=self._is_late if in_time else lambda: False,
        )


def described(values: Values) -> str:
    """Values as settings: ``KV_TYPE=f16 MODEL_THREADS=4``."""
    return " ".join(f"{name.upper()}={value}" for name, value in values.items()) or "default"
