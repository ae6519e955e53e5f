"""Prefill chunk sizes from step times."""

from __future__ import annotations

import pytest

from app.engine.pacing import MIN_CHUNK, PREFILL_SECONDS, Pacing


def measured(itl_budget: float | None = None, *, decode: float = 0.02, token: float = 0.001) -> Pacing:
    pacing = Pacing(itl_budget)
    for _ in range(20):
        pacing.observe(decode, 8, 0)
        pacing.observe(decode, 8, 0)
        pacing.observe(decode + 100 * token, 8, 100)
    return pacing


def test_chunks_are_full_while_no_answer_streams_on_a_fast_machine() -> None:
    assert measured(token=0.0009).chunk([], 512) == 512


def test_a_chunk_takes_half_a_second_while_no_answer_streams() -> None:
    assert measured(token=0.002).chunk([], 512) * 0.002 == pytest.approx(PREFILL_SECONDS, rel=0.05)
    assert measured(token=1 / 30).chunk([], 512) == MIN_CHUNK, "1 s instead of 17 s for 512 tokens"


def test_the_first_chunk_is_small() -> None:
    assert Pacing().chunk([], 512) == MIN_CHUNK
    pacing = Pacing()
    pacing.observe(2.0, 0, MIN_CHUNK)  # weights are read from disk
    assert pacing.chunk([], 512) == MIN_CHUNK
    pacing.observe(0.03, 0, MIN_CHUNK)
    assert pacing.chunk([], 512) == 512


def test_a_chunk_fills_the_budget_and_no_more() -> None:
    assert measured(0.1).chunk([8], 512) == 80
    assert measured(0.2).chunk([8], 512) == 176
    assert measured(9.0).chunk([8], 512) == 512


def test_the_default_budget_is_four_steps_and_at_least_60_ms() -> None:
    assert measured(decode=0.05).chunk([8], 512) == 144  # 200 ms, 50 of them for the decodes
    assert measured(decode=0.01).chunk([8], 512) == 48  # 60 ms, 10 of them for the decodes


def test_chunks_have_a_minimum_under_any_budget() -> None:
    assert measured(0.001).chunk([8], 512) == MIN_CHUNK


def test_chunks_shrink_when_the_machine_becomes_slower() -> None:
    pacing = measured(0.2)
    for _ in range(30):
        pacing.observe(0.02 + 80 * 0.002, 8, 80)
    assert pacing.chunk([8], 512) == 80
    assert pacing.prefill_seconds_per_token == pytest.approx(0.002, rel=0.05)


def test_unmeasured_numbers_of_streams_use_the_nearest_measured_one() -> None:
    pacing = Pacing()
    assert pacing.decode_seconds(4) == 0
    pacing.observe(0.01, 1, 0)
    pacing.observe(0.04, 8, 0)
    assert (pacing.decode_seconds(2), pacing.decode_seconds(7)) == (0.01, 0.04)


def test_prefill_without_decodes_is_the_whole_step() -> None:
    pacing = Pacing()
    pacing.observe(0.5, 0, 500)
    assert pacing.prefill_seconds_per_token == pytest.approx(0.001)


def test_tiny_chunks_are_not_measured() -> None:
    pacing = measured()
    for _ in range(50):
        pacing.observe(0.03, 8, 1)
    assert pacing.prefill_seconds_per_token == pytest.approx(0.001)


def test_a_prefill_beside_streams_of_another_engine_keeps_their_budget() -> None:
    pacing = measured(0.1, token=0.001)
    pacing.streams_elsewhere = lambda: True
    assert pacing.chunk([], 512) == 96
    pacing.streams_elsewhere = lambda: False
    assert pacing.chunk([], 512) == 496


def test_chunks_become_smaller_with_the_position() -> None:
    pacing = Pacing(0.1)
    for first in [*range(0, 1000, 100)] * 3:
        middle = first + 50
        pacing.observe(100 * (0.001 + 1e-6 * middle), 0, 100, middle)
    assert pacing.chunk([1], 512, 0) == 80, "100 ms hold 95 tokens"
    assert pacing.chunk([1], 512, 900) == 48, "100 ms hold 52 tokens"


def test_positions_of_one_place_tell_no_slope() -> None:
    pacing = Pacing(0.1)
    for i in range(40):
        pacing.observe(0.1 if i % 2 else 0.11, 0, 100, 50 + i % 2)
    assert pacing.chunk([1], 512, 5000) == 80


def test_a_first_decode_step_after_prefill_does_not_widen_the_budget() -> None:
    pacing = Pacing()
    for _ in range(10):
        pacing.observe(0.1, 8, 100)
        pacing.observe(0.05, 8, 0)
    assert pacing.chunk([8], 512) == 16 * 2, "60 ms instead of four steps of 50 ms"
    pacing.observe(0.02, 8, 0)
    assert pacing.decode_seconds(8) == pytest.approx(0.026)


def test_single_long_decode_steps_change_the_budget_little() -> None:
    pacing = measured(decode=0.02)
    for seconds in (0.02, 0.02, 0.2, 0.02):
        pacing.observe(seconds, 8, 0)
    assert pacing.decode_seconds(8) < 0.025
    for _ in range(60):
        pacing.observe(0.04, 8, 0)
    assert pacing.decode_seconds(8) == pytest.approx(0.04, rel=0.1)
