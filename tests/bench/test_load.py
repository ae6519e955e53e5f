"""Figures of a load, and parallel requests."""

from __future__ import annotations

import asyncio

import pytest

from bench.client import Timing
from bench.load import Load, medians, parallel, percentile, wave_rate


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.501, 51), (0.99, 99), (0.991, 100), (1.0, 100)]
)
def test_a_percentile_is_the_value_at_the_nearest_rank(share: float, value: float) -> None:
    assert percentile(range(100, 0, -1), share) == value


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([1.0, 2.0], 0.5) == 1.0


def test_a_load_has_the_figures_of_its_requests() -> None:
    timings = [
        Timing(sent_at=0.0, pieces_at=[1.0, 1.5, 3.5], generated_tokens=10),
        Timing(sent_at=1.0, pieces_at=[4.0, 5.0], generated_tokens=6),
    ]
    assert Load(timings, 4.0).figures() == {
        "tokens_per_second": 4.0,
        "ttft_p50": 1000.0,
        "ttft_p99": 3000.0,
        "gap_p50": 1000.0,
        "gap_p99": 2000.0,
    }


def test_the_rate_of_a_wave_counts_while_all_decode() -> None:
    early = Timing(pieces_at=[0.0, 1.0, 2.0, 3.0], generated_tokens=4)
    late = Timing(pieces_at=[1.0, 2.0, 3.0, 4.0], generated_tokens=8)  # two tokens per piece
    # Both answers decode from 1 to 3, with two pieces each.
    assert wave_rate([early, late]) == pytest.approx((2 * 1 + 2 * 2) / 2)


def test_a_client_sends_its_next_request_after_an_answer() -> None:
    running, max_running, order = 0, 0, []

    async def send(item: int) -> Timing:
        nonlocal running, max_running
        running += 1
        max_running = max(max_running, running)
        order.append(item)
        await asyncio.sleep(0)
        running -= 1
        return Timing(generated_tokens=item)

    timings = asyncio.run(parallel(range(10), 3, send))
    assert max_running == 3
    assert order == list(range(10))
    assert sorted(timing.generated_tokens for timing in timings) == order


def test_medians_are_taken_figure_by_figure() -> None:
    rounds = [{"a": 1.0, "b": 9.0}, {"a": 3.0, "b": 7.0}, {"a": 2.0, "b": 8.0}]
    assert medians(rounds) == {"a": 2.0, "b": 8.0}
