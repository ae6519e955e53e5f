"""``tokenstream tune``, with forced measurements and with a real, short run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.__main__ import main
from app.cli import tune as module
from app.cli.tune import TuneError, tune
from app.config.settings import Settings, load
from app.fit.tuned_file import TunedFileError
from app.measure.measurer import Measurer, Trial, TrialFailed
from app.measure.mix import Mix, Rates
from app.service.model.tuned import with_tuned
from app.service.start import Start
from app.weights.auto_format import Converted
from tests.conftest import MODEL
from tests.tiny_models import TinyModel

Speed = Callable[[Trial], float]


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    def given(**values: Any) -> Settings:
        files = {"tuned_file": tmp_path / "tuned.toml", "models_dir": tmp_path / "models"}
        return load(None, **(files | {"model_path": MODEL, "n_ctx": 4096, "max_sequences": 4} | values))

    return given


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Callable[[Speed], None]:
    """Replace speeds. No format is without loss."""

    def replace(speed: Speed) -> None:
        def rates(self: Measurer, trial: Trial) -> Rates:
            factor = speed(trial)
            return {
                "prefill": 1000 * factor,
                "decode 1": 100 * factor,
                f"decode {self.mix.n_parallel}": factor,
            }

        monkeypatch.setattr(Measurer, "rates", rates)
        monkeypatch.setattr(module, "kept_formats", lambda *_: iter(()))

    return replace


def test_a_faster_setting_is_kept_and_used_by_the_next_start(
    settings: Callable[..., Settings],
    force: Callable[[Speed], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def speed(trial: Trial) -> float:
        if not trial.matmul:
            raise TrialFailed("it ended its process by signal SIGILL")
        return 1.25 if trial.flash_attention is False else 1.0

    force(speed)
    plot = tmp_path / "tune.svg"
    tune(settings(), 4, plot)
    printed = capsys.readouterr()
    assert "decode of 48 tokens alone, and of 24 in 4 requests at once" in printed.out
    lines = {line.split("  ")[0]: line for line in printed.out.splitlines()}
    assert lines["FLASH_ATTENTION=off"].split()[1:] == ["1.25", "x"] * 4 + ["better"]
    assert "failed: it ended its process by signal SIGILL" in printed.out
    assert "FLASH_ATTENTION=off: 1.25 times as fast as the default" in printed.out
    assert "equal requests can then have different answers" in printed.out
    assert plot.read_text().startswith("<?xml")
    assert "default, 2 of 3" in printed.err

    caplog.set_level(logging.INFO)
    assert Start(settings()).service.models.default.settings.flash_attention == "off"
    assert f"tuned settings of {tmp_path / 'tuned.toml'}: FLASH_ATTENTION=off" in caplog.messages
    assert with_tuned(settings(flash_attention="on")).flash_attention == "on"  # a set value takes precedence
    assert with_tuned(settings(tuned_file=tmp_path / "other")).flash_attention == "auto"
    tuned = with_tuned(settings())
    assert "flash_attention" not in tuned.model_fields_set
    assert tuned.tgichat is None  # a complete object
    monkeypatch.setattr("app.fit.tuned_file.physical_cores", lambda: 64)
    assert with_tuned(settings()).flash_attention == "auto"


def test_the_file_of_a_faster_format_is_kept(
    settings: Callable[..., Settings],
    force: Callable[[Speed], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    force(lambda trial: {"a": 1.1, "b": 1.2}.get(trial.model.parent.name, 1.0))
    paths = [tmp_path / folder / "model.gguf" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.symlink_to(MODEL)
    converted = [Converted(kind, path, True, 0.0) for kind, path in zip(("q8_0", "q6_k"), paths, strict=True)]
    monkeypatch.setattr(module, "kept_formats", lambda *_: iter(converted))
    tune(settings(), 4, None)
    assert with_tuned(settings()).quantize == "q6_k"
    assert [path.exists() for path in paths] == [False, True]


def test_each_of_several_models_has_its_tuned_settings(
    settings: Callable[..., Settings], force: Callable[[Speed], None], tiny_model: TinyModel
) -> None:
    force(lambda trial: 1.25 if trial.flash_attention is False else 1.0)
    tune(settings(), 4, None)
    models = (f"a={MODEL}", f"b={tiny_model('sliding-window')}")
    service = Start(settings(model_path=None, models=models)).service
    assert [entry.settings.flash_attention for entry in service.models.entries] == ["off", "auto"]


def test_without_a_faster_setting_the_default_stays(
    settings: Callable[..., Settings], force: Callable[[Speed], None], capsys: pytest.CaptureFixture[str]
) -> None:
    force(lambda trial: 1.25 if trial.flash_attention is False else 1.0)
    tune(settings(), 4, None)
    force(lambda trial: 0.9 if trial.flash_attention is False else 1.0)
    tune(settings(), 4, None)
    assert "no setting is faster than the default by more than 2.0% of noise" in capsys.readouterr().out
    assert with_tuned(settings()).flash_attention == "auto"


def test_a_candidate_that_leaves_less_memory_for_requests_is_not_used(
    settings: Callable[..., Settings],
    force: Callable[[Speed], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 600 << 20)
    force(lambda trial: 1.25 if trial.kv_type == "f16" else 1.0)
    tune(settings(n_ctx=None, max_sequences=8, prefix_cache_mb=0), 4, None)
    assert "failed: it leaves less memory for requests" in capsys.readouterr().out


def test_a_default_that_cannot_be_measured_is_an_error(
    settings: Callable[..., Settings],
    force: Callable[[Speed], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def crash(_trial: Trial) -> float:
        raise TrialFailed("it ended its process by signal SIGSEGV")

    force(crash)
    with pytest.raises(TuneError, match="cannot be measured with its settings: it ended its process by"):
        tune(settings(), 4, None)
    (tmp_path / "tuned.toml").write_text("[[tuned")
    with pytest.raises(TunedFileError, match="is not valid TOML"):
        tune(settings(), 4, None)
    with pytest.raises(TuneError, match="MODEL_GPU_LAYERS is set"):
        tune(settings(model_gpu_layers=1), 4, None)
    with pytest.raises(SystemExit):
        main(["tune", "--minutes", "0"])
    assert "argument --minutes: 0: should be a number of minutes, at most 1440" in capsys.readouterr().err


def test_a_real_run(
    settings: Callable[..., Settings],
    tiny_model: TinyModel,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MIX", Mix(64, 8, 2, 8, 64, 8, 2))
    model = tiny_model("sliding-window")
    given = settings(model_path=model, model_threads=1, kv_type="f16", quantize=None)
    tune(given, 4, None)
    printed = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in printed.splitlines()}
    assert "prefill" in printed
    assert lines.keys() >= {"default, tokens/s", "FLASH_ATTENTION=off"}
    assert "MATMUL=ggml" in printed
    # Those that are set are not changed.
    assert not any(name.startswith(("MODEL_THREADS", "KV_TYPE", "QUANTIZE")) for name in lines)
    assert "failed" not in printed
