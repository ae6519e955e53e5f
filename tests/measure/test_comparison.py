"""Comparison of candidates, with forced measurements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import pytest

from app.measure.comparison import Comparison, Noise, compare
from app.measure.measurer import TrialFailed
from app.measure.mix import Rates

STEADY = Noise.of([{"prefill": 100.0, "decode": 10.0}] * 3)


def measured(values: Iterable[tuple[float, float]]) -> Callable[[], Rates]:
    following = itertools.cycle(values)

    def measure() -> Rates:
        prefill, decode = next(following)
        return {"prefill": prefill, "decode": decode}

    return measure


BASE = measured([(100, 10)])


def compared(*values: tuple[float, float], noise: Noise = STEADY, late: bool = False) -> Comparison:
    return compare(measured(values), measured([(100, 10)]), noise, is_late=lambda: late)


@pytest.mark.parametrize(
    ("values", "is_better", "reason"),
    [
        ([(110, 11)], True, "faster"),
        ([(102, 10.1)], False, "within 2.0% of noise"),
        ([(90, 9)], False, "slower"),
        ([(120, 12), (120, 12), (99, 9.9)], False, "not faster each time"),
        ([(150, 9.5)], False, "decode is slower"),
        ([(150, 9.8)], True, "faster"),
    ],
)
def test_a_better_candidate_is_faster_in_each_pair_and_slower_with_no_load(
    values: list[tuple[float, float]], is_better: bool, reason: str
) -> None:
    found = compared(*values)
    assert (found.is_better, found.reason) == (is_better, reason)


def test_the_noise_of_the_default_is_the_margin() -> None:
    noise = Noise.of([{"prefill": 100.0, "decode": 10.0}, {"prefill": 110.0, "decode": 11.0}])
    assert noise.margin == pytest.approx(math.log(1.1))
    assert not compared((109, 10.9), noise=noise).is_better
    assert compared((112, 11.2), noise=noise).is_better
    assert compared((150, 9.2), noise=noise).is_better  # the decode of the default varies as much


def test_a_candidate_is_measured_no_more_often_than_needed() -> None:
    n_measured = 0

    def slow() -> Rates:
        nonlocal n_measured
        n_measured += 1
        return {"prefill": 90.0, "decode": 9.0}

    compare(slow, BASE, STEADY, is_late=lambda: False)
    assert n_measured == 1
    assert compared((120, 12), late=True).reason == "not enough time"


def test_a_failure_costs_only_the_candidate() -> None:
    def crash() -> Rates:
        raise TrialFailed("it ended its process by signal SIGSEGV")

    found = compare(crash, BASE, STEADY, is_late=lambda: False)
    assert (found.is_better, found.ratios) == (False, {})
    assert found.reason == "failed: it ended its process by signal SIGSEGV"
    with pytest.raises(TrialFailed):
        compare(BASE, crash, STEADY, is_late=lambda: False)
