"""Settings as flags of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cli.parser import parser
from app.config.flags import given_settings
from app.config.settings import SettingsError, load


def test_flags_take_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N_CTX", "1024")
    monkeypatch.setenv("TOP_K", "7")
    monkeypatch.setenv("MODEL_GPU_LAYERS", "3")
    arguments = ["serve", "--n-ctx", "2048", "--top-k=", "--model-gpu-layers", "-1"]
    arguments += ["--allowed-hosts", "a.example, b.example", "--model-path", "x.gguf"]
    settings = load(None, **given_settings(parser().parse_args(arguments)))
    assert settings.n_ctx == 2048
    assert settings.top_k == 7  # an empty flag counts as unset
    assert settings.model_gpu_layers == -1
    assert settings.allowed_hosts == ("a.example", "b.example")
    assert settings.model_path == Path("x.gguf")


def test_a_wrong_value_of_a_flag_is_reported_like_that_of_a_variable() -> None:
    given = given_settings(parser().parse_args(["chat", "--n-ctx", "lots"]))
    with pytest.raises(SettingsError, match=r"^N_CTX=lots: should be a valid integer$"):
        load(None, **given)


def test_a_misspelled_flag_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["serve", "--n-ct", "2048"])
    assert "unrecognized arguments: --n-ct 2048" in capsys.readouterr().err


def test_flags_of_a_request_do_not_change_settings() -> None:
    options = parser().parse_args(["generate", "--prompt", "x", "--temperature", "0.5", "--n-ctx", "512"])
    assert given_settings(options) == {"n_ctx": "512"}
    assert options.temperature == 0.5
