"""The simulation of many servers."""

from __future__ import annotations

import pytest

from bench.scaling import MACHINE, ROUTINGS, Machine, Traffic, simulate

TRAFFIC = Traffic(rate=0.5, n_contexts=60)


def test_steps_take_the_measured_times() -> None:
    machine = Machine(prefill=100, decode_1=50, decode_8=160)
    assert machine.step(1, 0) == pytest.approx(1 / 50)
    assert machine.step(8, 0) == pytest.approx(8 / 160)
    assert machine.step(0, 30) == pytest.approx(0.3)


def test_one_server_has_one_routing() -> None:
    outcomes = [simulate(1, routing, MACHINE, TRAFFIC) for routing in ROUTINGS]
    assert len({(one.tokens_per_second, one.ttft_p99, one.hit_rate) for one in outcomes}) == 1


def test_affinity_finds_more_prefixes_than_other_routings() -> None:
    by_routing = {routing: simulate(6, routing, MACHINE, TRAFFIC) for routing in ROUTINGS}
    best = by_routing.pop("affinity")
    assert all(best.hit_rate > 1.2 * other.hit_rate for other in by_routing.values())
    assert all(best.ttft_p50 < other.ttft_p50 for other in by_routing.values())
    assert simulate(6, "affinity", MACHINE, TRAFFIC) == best


def test_requests_of_a_failed_server_are_repeated() -> None:
    traffic = Traffic(rate=0.4, hours_to_failure=0.01)
    outcome = simulate(4, "affinity", MACHINE, traffic)
    assert outcome.n_repeated > 0
    assert outcome.tokens_per_second > 0


def test_a_price_per_token_follows_from_speed() -> None:
    outcome = simulate(2, "affinity", MACHINE, TRAFFIC)
    assert outcome.dollars_per_million == pytest.approx(
        2 * MACHINE.dollars / outcome.tokens_per_second / 3600 * 1e6
    )
