"""Order of servers, failed measurements, and stored results."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from bench import __main__ as command_line
from bench import results
from bench.client import BenchError
from bench.goals import NO_SPECULATION, OURS, PEER, PEER_FLASH_OFF
from bench.load import Figures, Scale
from bench.prompts import Prompts, Texts
from bench.suite import WORKLOADS, Suite, Workload
from tests.conftest import MODEL


@pytest.fixture
def suite() -> Suite:
    return Suite(MODEL, n_threads=2, scale=Scale(0.25), peers={})


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Variants and texts of all measurements. A fake replaces the servers, and fails for one variant."""
    measured: list[tuple[str, str]] = []

    def serve(_: Suite, workload: Workload, variant: str, texts: Texts, prompts: Prompts) -> Figures:
        assert workload is WORKLOADS["long"]
        measured.append((variant, texts.text(16)))
        if variant == PEER_FLASH_OFF:
            raise BenchError("it does not start")
        return {"gap_p99": float(len(measured))}

    monkeypatch.setattr(Suite, "_served", serve)
    return measured


def test_the_order_of_variants_rotates_and_texts_are_equal(
    suite: Suite, measurements: list[tuple[str, str]]
) -> None:
    suite.run(["long"], [OURS, NO_SPECULATION, PEER], 3)
    rounds = [measurements[begin : begin + 3] for begin in (0, 3, 6)]
    assert [first for (first, _), *_ in rounds] == [OURS, NO_SPECULATION, PEER]
    assert [len({text for _, text in of_round}) for of_round in rounds] == [1, 1, 1]
    assert len({text for _, text in measurements}) == 3
    assert suite.results == {
        "long": {OURS: {"gap_p99": 6.0}, NO_SPECULATION: {"gap_p99": 4.0}, PEER: {"gap_p99": 5.0}}
    }


def test_a_failed_measurement_does_not_stop_the_others(
    suite: Suite, measurements: list[tuple[str, str]]
) -> None:
    suite.run(["long"], [PEER_FLASH_OFF, PEER], 2)
    assert [variant for variant, _ in measurements] == [PEER, PEER_FLASH_OFF, PEER_FLASH_OFF, PEER]
    assert [*suite.results["long"]] == [PEER]
    assert suite.failures == [
        f"round {number}: long, {PEER_FLASH_OFF}: it does not start" for number in (1, 2)
    ]


def test_results_of_other_workloads_are_kept(suite: Suite, tmp_path: Path) -> None:
    path = tmp_path / "default.json"
    suite.rounds = {"idle": {OURS: [{"core_share": 0.00123456}]}}
    results.record(suite, path)
    suite.rounds = {"memory": {OURS: [{"after_mb": 900.0}, {"after_mb": 910.0}]}}
    results.record(suite, path)
    assert results.read(path) == {
        "idle": {OURS: {"core_share": 0.001235}},
        "memory": {OURS: {"after_mb": 905.0}},
    }
    kept = json.loads(path.read_text())["workloads"]["memory"]
    assert kept["rounds"] == {OURS: [{"after_mb": 900.0}, {"after_mb": 910.0}]}
    assert kept["run"]["machine"]["threads"] == 2


def test_names_are_separated_by_commas() -> None:
    names = command_line._one_of(WORKLOADS)
    assert names("chat,unique-8") == ["chat", "unique-8"]
    assert names("unique") == ["unique-1", "unique-4", "unique-8", "unique-16"]
    with pytest.raises(argparse.ArgumentTypeError, match=r"'unik': should be one of unique-1, "):
        names("unik")
