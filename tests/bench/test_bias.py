"""The labelled cases of the bias study, its figures, and a run over a few cases."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bench.bias.__main__ import main
from bench.bias.cases import TASKS, read_task
from bench.bias.figures import Outcome, difference, log_softmax
from bench.bias.ways import WAYS, Scores, Way, named_option


def test_cases_are_many_distinct_and_balanced_in_both_halves() -> None:
    n_cases = 0
    for name in TASKS:
        halves = [read_task(name, "development"), read_task(name, "held-out")]
        assert halves[0].options == halves[1].options
        for task in halves:
            counts = Counter(case.right for case in task.cases)
            assert sorted(counts) == [*range(len(task.options))]
            assert len(set(counts.values())) == 1, f"{name}: labels differ in number"
        assert len(halves[0].cases) == len(halves[1].cases)
        n_cases += sum(len(task.cases) for task in halves)
        everything = [case for task in halves for case in task.cases] + [*halves[0].examples]
        assert len({case.right for case in halves[0].examples[: len(task.options)]}) == len(task.options)
        assert all(case.text.strip() == case.text != "" for case in everything)
        assert len({(case.text, case.instructions) for case in everything}) == len(everything)
        # A document with several statements is in one half only.
        assert {case.text for case in halves[0].cases}.isdisjoint(case.text for case in halves[1].cases)
    assert n_cases >= 240


def test_figures_of_two_answers() -> None:
    outcome = Outcome.of(np.log([[0.7, 0.3], [0.95, 0.05], [0.9, 0.1]]), [0, 1, 0])
    assert outcome.accuracy == pytest.approx(2 / 3)
    assert outcome.log_loss == pytest.approx(-np.log([0.7, 0.05, 0.9]).mean())
    assert [n for n, *_ in outcome.bins()] == [0, 0, 1, 0, 2]
    assert outcome.calibration_error == pytest.approx((1 * (1 - 0.7) + 2 * (0.925 - 0.5)) / 3)
    assert difference(outcome.losses, outcome.losses) == (0, 0)


def test_the_prior_and_the_average_of_two_orders_remove_a_bias() -> None:
    truth = log_softmax(np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]]))
    by_option = np.array([3.0, 0.0, -3.0])  # with the options reversed: in the same order of options
    same, turned = truth + by_option, truth - by_option
    prior = np.tile(log_softmax(by_option), (2, 1))
    scores = Scores((same, turned), (prior, -prior))
    assert not np.allclose(scores.logprobs(Way("letters", averages=False, subtracts=False)), truth)
    for way in WAYS:
        if way.averages or way.subtracts:
            np.testing.assert_allclose(scores.logprobs(way), truth, atol=1e-9)


def test_a_text_names_the_first_option_that_is_a_word_in_it() -> None:
    names = ["Yes", "No", "no rush"]
    assert named_option(names, "Nobody knows. yes, or no.") == 0
    assert named_option(names, "No rush at all") == 2
    assert named_option(names, "Perhaps") is None


@pytest.mark.slow
def test_the_study_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_THREADS", "1")
    monkeypatch.setenv("FLASH_ATTENTION", "on")
    assert main(["--tasks", "sentiment", "facts", "--cases", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for way in WAYS:
        # Accuracy, log loss, calibration error, differences and bins of confidence.
        rows = [line for line in lines if line.startswith(f"| {way.name} |")]
        assert len(rows) == 5
        losses = [float(cell) for cell in rows[1].split("|")[2:-1]]
        assert len(losses) == 3  # two tasks and their mean
        assert all(0 < loss < 50 for loss in losses)
    assert any(line.startswith("| sentiment | classifier |") for line in lines)
