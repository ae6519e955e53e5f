"""Rows of goals: reference, direction and bound of each comparison."""

from __future__ import annotations

import copy

import pytest

from bench.goals import (
    BARE,
    GGML,
    GOALS,
    NO_SPECULATION,
    OPENVINO,
    OURS,
    PEER,
    PEER_FLASH_OFF,
    Results,
    Row,
    rows,
    table,
)
from bench.load import Figures

LOAD = {"tokens_per_second": 100.0, "ttft_p99": 50.0}
SERVERS = (OURS, NO_SPECULATION, GGML, PEER, PEER_FLASH_OFF, OPENVINO)
RESULTS: dict[str, dict[str, Figures]] = {
    **{f"unique-{n}": {name: dict(LOAD) for name in SERVERS} for n in (1, 4, 8, 16)},
    **{
        workload: {name: dict(figures) for name in SERVERS}
        for workload, figures in {
            "shared": {
                "cold_tokens_per_second": 60.0,
                "cold_ttft_p99": 900.0,
                "warm_tokens_per_second": 90.0,
            },
            "contexts": LOAD,
            "long": {"gap_p99": 100.0, "all_tokens_per_second": 1000.0},
            "copy": {"decode_rate": 170.0},
            "chat": {"later_ttft_p50": 80.0, "tokens_per_second": 100.0},
            "several": LOAD,
        }.items()
    },
    "decode": {OURS: {"rate_of_8": 400.0}, BARE: {"rate_of_8": 400.0}},
    "decide": {
        name: {"first_per_second": 30.0, "again_per_second": 60.0, "prefill": 1500.0}
        for name in (OURS, PEER, PEER_FLASH_OFF, BARE)
    },
    "decide-beside": {OURS: {"gap_p99": 90.0}},
    "classify": {name: {"per_second": 50.0} for name in (OURS, PEER, PEER_FLASH_OFF)},
    "memory": {name: {"after_mb": 900.0} for name in (OURS, GGML, PEER, PEER_FLASH_OFF)},
    "restart": {OURS: {"restarted_ttft": 30.0, "warm_ttft": 20.0}},
    "idle": {OURS: {"core_share": 0.004}, PEER: {"core_share": 0.0}},
    **{
        f"{size}-{file_type}": {
            name: {"prefill": 900.0, "rate_of_1": 90.0, "rate_of_8": 300.0} for name in (OURS, GGML, OPENVINO)
        }
        for size in ("135M", "1B")
        for file_type in ("Q4_K_M", "Q4_0", "Q4_1", "Q8_0")
    },
}


def results(*changes: tuple[str, str, str, float]) -> Results:
    changed = copy.deepcopy(RESULTS)
    for workload, variant, figure, value in changes:
        changed[workload][variant][figure] = value
    return changed


def row_of(goal: str, figures: Results, beside: str = "llama-server") -> Row:
    """The row of a goal. If several servers have one, it is that of ``beside``."""
    found = [row for row in rows(figures) if row.goal.startswith(goal)]
    (row,) = found if len(found) == 1 else (row for row in found if row.beside == beside)
    return row


def test_complete_results_have_a_row_for_every_goal() -> None:
    assert len(list(rows(RESULTS))) == len(GOALS)
    assert len(table(RESULTS).splitlines()) == len(GOALS) + 2


def test_workloads_without_results_have_no_row() -> None:
    assert [row.goal for row in rows({"restart": RESULTS["restart"]})] == [
        "first request after a restart: TTFT in ms"
    ]
    without_a_variant = results()
    del without_a_variant["shared"][PEER]  # type: ignore[attr-defined]
    assert {row.beside for row in rows(without_a_variant) if "burst" in row.goal} == {"OpenVINO", "ggml"}


def test_the_peer_at_its_defaults_is_enough_for_a_row() -> None:
    at_defaults = results(("shared", PEER, "cold_tokens_per_second", 30.0))
    del at_defaults["shared"][PEER_FLASH_OFF]  # type: ignore[attr-defined]
    assert row_of("burst on a new prefix: tokens/s", at_defaults).theirs == 30.0


def test_a_speed_is_compared_with_the_higher_figure_of_the_peer() -> None:
    figures = results(
        ("contexts", OURS, "tokens_per_second", 300.0),
        ("contexts", PEER_FLASH_OFF, "tokens_per_second", 120.0),
    )
    row = row_of("six contexts, fresh start: tokens/s", figures)
    assert (row.ours, row.theirs, row.compared) == (300.0, 120.0, 2.5)
    assert row.is_reached


def test_a_latency_is_compared_with_the_lower_figure_of_the_peer() -> None:
    figures = results(("long", OURS, "gap_p99", 9.0), ("long", PEER, "gap_p99", 80.0))
    row = row_of("long prompts among", figures)
    assert (row.ours, row.theirs, row.compared) == (9.0, 80.0, pytest.approx(0.1125))
    assert not row.is_reached


def test_the_worst_workload_decides_on_speculation() -> None:
    row = row_of("least gain by speculation", results(("chat", OURS, "tokens_per_second", 90.0)))
    assert "(chat)" in row.goal
    assert row.compared == pytest.approx(0.9)
    assert not row.is_reached


def test_a_kernel_is_compared_with_the_faster_of_ggml_and_openvino() -> None:
    figures = results(("1B-Q4_0", GGML, "rate_of_8", 160.0), ("1B-Q4_0", OPENVINO, "rate_of_8", 150.0))
    row = row_of("1B-Q4_0, decode of 8", figures)
    assert (row.ours, row.theirs, row.beside) == (300.0, 160.0, "ggml")
    assert not row.is_reached


def test_a_latency_is_compared_with_openvino() -> None:
    figures = results(("chat", OURS, "later_ttft_p50", 56.0))
    row = row_of("chat", figures, "OpenVINO")
    assert (row.compared, row.is_reached) == (pytest.approx(0.7), True)


def test_the_small_q4_k_m_file_is_compared_with_openvino_on_q4_1() -> None:
    figures = results(("135M-Q4_1", OPENVINO, "prefill", 600.0))
    del figures["135M-Q4_K_M"][OPENVINO]  # type: ignore[attr-defined]
    row = row_of("135M-Q4_K_M, prefill", figures, "OpenVINO with Q4_1")
    assert (row.ours, row.theirs, row.beside) == (900.0, 600.0, "OpenVINO with Q4_1")
    assert row.is_reached


def test_memory_is_a_difference() -> None:
    figures = results(("memory", OURS, "after_mb", 990.0), ("memory", PEER_FLASH_OFF, "after_mb", 920.0))
    row = row_of("resident", figures)
    assert row.compared == 90.0
    assert not row.is_reached
    assert str(row) == "| resident memory: MB | 990 | 900 (llama-server) | 90.00 MB | ≤ 80 MB | no |"


@pytest.mark.parametrize(("share", "is_reached"), [(0.01, True), (0.011, False)])
def test_idle_is_a_share_of_a_core(share: float, is_reached: bool) -> None:
    assert row_of("idle", results(("idle", OURS, "core_share", share))).is_reached is is_reached
