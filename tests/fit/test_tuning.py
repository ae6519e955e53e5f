"""The search for faster settings, with forced measurements."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from app.fit.tuning import Choice, Search, Tuning, Values, described
from app.measure.measurer import TrialFailed
from app.measure.mix import Rates

CHOICES = (Choice("model_threads", [1, 4, 8]), Choice("kv_type", ["f16"]), Choice("matmul", ["ggml"]))


def run(
    speed: Callable[[Values], float], noise: Callable[[], float] = lambda: 1.0, n_measurements: int = 1000
) -> tuple[Tuning, list[Values]]:
    """Search with a machine whose speed is given. Returns all measured values too."""
    measured: list[Values] = []

    def measure(values: Values) -> Rates:
        measured.append(values)
        return {"prefill": 1000 * speed(values) * noise(), "decode 1": 100 * speed(values) * noise()}

    search = Search(measure, is_late=lambda: len(measured) >= n_measurements, on_progress=lambda _: None)
    return search.run(CHOICES), measured


def test_the_best_values_are_found_one_after_another() -> None:
    def speed(values: Values) -> float:
        threads = {1: 0.5, 4: 1.2, 8: 1.3}.get(values.get("model_threads", 2), 1.0)
        # f16 is faster only with many threads
        return threads * (1.1 if values.get("kv_type") == "f16" and threads > 1.2 else 1.0)

    tuning, _ = run(speed)
    assert tuning.values == {"model_threads": 8, "kv_type": "f16"}
    assert described(tuning.values) == "MODEL_THREADS=8 KV_TYPE=f16"
    assert tuning.final is not None
    assert tuning.final.ratios == pytest.approx({"prefill": 1.43, "decode 1": 1.43})
    assert tuning.default == {"prefill": 1000, "decode 1": 100}
    assert {row.comparison.reason for row in tuning.rows} >= {"slower", "faster"}


def test_a_value_that_needs_another_one_is_found_in_the_second_round() -> None:
    def speed(values: Values) -> float:
        if values.get("kv_type") != "f16":
            return 1.0
        return 1.2 if values.get("model_threads") == 8 else 1.1

    assert run(speed)[0].values == {"kv_type": "f16", "model_threads": 8}


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_changes_nothing(seed: int) -> None:
    source = random.Random(seed)
    tuning, _ = run(lambda _: 1.0, lambda: source.uniform(0.9, 1.1))
    assert tuning.values == {}


def test_values_that_are_not_faster_than_the_default_again_are_dropped() -> None:
    calls = 0

    def speed(values: Values) -> float:
        nonlocal calls
        calls += 1
        return 1.1 if values and calls < 30 else 1.0  # another program has ended meanwhile

    tuning, _ = run(speed)
    assert any(row.comparison.is_better for row in tuning.rows)
    assert tuning.values == {}
    assert tuning.final is not None


def test_a_failing_candidate_is_tried_once() -> None:
    def speed(values: Values) -> float:
        if values.get("matmul") == "ggml":
            raise TrialFailed("it ended its process by signal SIGILL")
        return 1.2 if values.get("kv_type") == "f16" else 1.0

    tuning, measured = run(speed)
    assert tuning.values == {"kv_type": "f16"}
    assert sum(values.get("matmul") == "ggml" for values in measured) == 1


def test_the_search_ends_in_time() -> None:
    tuning, measured = run(lambda values: 1.1 if values.get("model_threads") == 4 else 1.0, n_measurements=13)
    assert not tuning.is_complete
    assert tuning.values == {"model_threads": 4}
    assert len(measured) <= 13 + 8  # the last comparison with the defaults


def test_no_value_is_computed_without_time() -> None:
    def formats() -> Iterator[str]:
        yield "q8_0"  # converts the model
        raise AssertionError

    n_measured = 0

    def measure(_values: Values) -> Rates:
        nonlocal n_measured
        n_measured += 1
        return {"prefill": 1000.0}

    search = Search(measure, is_late=lambda: n_measured > 3, on_progress=lambda _: None)
    assert not search.run([Choice("quantize", formats()), Choice("kv_type", ["f16"])]).is_complete
