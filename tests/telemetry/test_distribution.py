"""Histograms of equal values in one call."""

from __future__ import annotations

from app.telemetry.distribution import Distribution


def test_buckets_are_cumulative_and_include_their_bounds() -> None:
    values = Distribution((0.5, 1, 2))
    values.add(0.5, 3)
    values.add(1.5)
    values.add(9, 2)
    assert values.buckets() == [("0.5", 3), ("1.0", 3), ("2.0", 4), ("+Inf", 6)]
    assert values.sum == 21
