"""QUANTIZE=auto: the choice among number formats, with forced measurements and with real ones."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from app.config.settings import load
from app.measure.measurer import Measurer, Trial, TrialFailed
from app.measure.mix import Mix, Rates
from app.weights import auto_format
from app.weights.model import resolve_model
from tests.tiny_models import TinyModel

Speed = Callable[[str], float]  # of a format
Loss = Callable[[str], float]


def format_of(path: Path) -> str:
    return path.stem.rpartition(".")[2].lower() if "." in path.stem else "f16"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A model with F16 weights."""
    path = tmp_path / "tiny-F16.gguf"
    shutil.copyfile(tiny_model("sliding-window"), path)
    return path


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Callable[[Speed, Loss], list[str]]:
    """Replace speeds and losses. Returns the list of formats whose loss was measured."""

    def replace(speed: Speed, loss: Loss) -> list[str]:
        lost: list[str] = []

        def rates(_self: Measurer, trial: Trial) -> Rates:
            return {"prefill": 100 * speed(format_of(trial.model)), "decode 1": speed(format_of(trial.model))}

        def mean_loss(_self: Measurer, trial: Trial) -> float:
            lost.append(format_of(trial.model))
            return 3.0 + loss(format_of(trial.model))

        monkeypatch.setattr(Measurer, "rates", rates)
        monkeypatch.setattr(Measurer, "loss", mean_loss)
        return lost

    return replace


def resolve(source: Path, tmp_path: Path) -> Path:
    return resolve_model(
        load(None, model_path=source, models_dir=tmp_path / "models", quantize="auto", model_threads=1)
    )


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "models").rglob("*.gguf"))


def test_the_fastest_format_without_loss_is_kept_and_remembered(
    source: Path, tmp_path: Path, force: Callable[[Speed, Loss], list[str]]
) -> None:
    speeds = {"f16": 1.0, "q8_0": 1.5, "q6_k": 1.8, "q5_k_m": 1.2}
    lost = force(lambda kind: speeds.get(kind, 9.0), lambda kind: 0.1 if kind == "q4_1" else 0.001)
    path = resolve(source, tmp_path)
    assert path.name == "tiny.Q6_K.gguf"
    assert files(tmp_path) == ["tiny.Q6_K.gguf"]
    assert lost == ["f16", "q8_0", "q6_k", "q5_k_m", "q4_1"]  # not q4_k_m, which has fewer bits

    lost.clear()
    assert resolve(source, tmp_path) == path
    assert lost == []
    source.write_bytes(source.read_bytes() + b"\0")  # another file
    assert resolve(source, tmp_path).name == "tiny.Q6_K.gguf"
    assert lost != []


def test_a_format_that_loses_more_is_not_used(
    source: Path, tmp_path: Path, force: Callable[[Speed, Loss], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    force(lambda kind: 1.0 if kind == "f16" else 2.0, lambda kind: 0.0 if kind == "f16" else 0.006)
    assert resolve(source, tmp_path) == source
    assert files(tmp_path) == []
    assert "tiny-F16 as q8_0: perplexity changes by +0.60 %" in caplog.messages
    assert caplog.messages[-1] == "QUANTIZE=auto: no other format of tiny-F16 is faster"


def test_a_quantized_model_is_not_converted_to_fewer_bits(
    source: Path, tmp_path: Path, force: Callable[[Speed, Loss], list[str]]
) -> None:
    settings = load(None, model_path=source, models_dir=tmp_path, quantize="q6_k", model_threads=1)
    smaller = resolve_model(settings)
    lost = force(lambda _: 1.0, lambda _: 0.0)
    assert resolve(smaller, tmp_path) == smaller
    assert lost == ["q6_k", "q8_0"]


def test_a_file_of_an_earlier_start_stays(
    source: Path, tmp_path: Path, force: Callable[[Speed, Loss], list[str]]
) -> None:
    settings = load(None, model_path=source, models_dir=tmp_path / "models", quantize="q8_0", model_threads=1)
    earlier = resolve_model(settings)
    force(lambda _: 1.0, lambda _: 0.0)
    assert resolve(source, tmp_path) == source
    assert files(tmp_path) == [earlier.name]


def test_a_model_that_cannot_be_measured_stays_as_it_is(
    source: Path,
    tmp_path: Path,
    force: Callable[[Speed, Loss], list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def crash(_format: str) -> float:
        raise TrialFailed("it ended its process by signal SIGILL")

    force(crash, lambda _: 0.0)
    assert resolve(source, tmp_path) == source
    ended = "QUANTIZE=auto: the comparison ended early, and the next start repeats it: "
    assert f"{ended}it ended its process by signal SIGILL" in caplog.messages
    force(lambda kind: 1.0 if kind == "f16" else 2.0, lambda kind: 0.1 if kind == "q6_k" else 0.0)
    assert resolve(source, tmp_path).name == "tiny.Q8_0.gguf"


def test_a_real_choice(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Real conversions, child processes, speeds and losses."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(auto_format, "Mix", lambda: Mix(64, 4, 2, 4, 64, 8, 2))
    monkeypatch.setattr(auto_format, "FORMATS", ("q8_0",))
    path = resolve(source, tmp_path)
    assert path == source or path.name in files(tmp_path)
    assert any("tiny-F16 as q8_0: perplexity changes by" in message for message in caplog.messages)
    assert not any("cannot be measured" in message for message in caplog.messages)
    assert len(files(tmp_path)) == (path != source)
