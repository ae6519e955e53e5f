"""Settings from the environment and from ``.env``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest

from app.config.addresses import split_address
from app.config.model_settings import QuantizedFormat
from app.config.settings import SettingsError, load
from tests.conftest import clean_environment


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = clean_environment()
    for name in list(os.environ):
        if name not in clean:
            monkeypatch.delenv(name)


def test_values_have_types_and_empty_values_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N_CTX", "4096")
    monkeypatch.setenv("TEMPERATURE", "0.5")
    monkeypatch.setenv("MODEL_REPO", "")
    settings = load(env_file=None)
    assert (settings.n_ctx, settings.temperature, settings.model_repo) == (4096, 0.5, None)


@pytest.mark.parametrize(
    ("variable", "value", "field"),
    [
        ("WEIGHT_FILES", "a.gguf", "model_path"),
        ("MODEL_PATH", "a.gguf", "model_path"),
        ("N_GPU_LAYERS", "3", "model_gpu_layers"),
        ("MODEL_GPU_LAYERS", "3", "model_gpu_layers"),
    ],
)
def test_settings_have_aliases(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, field: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert str(getattr(load(env_file=None), field)) == value


def test_the_hub_token_has_an_alias_and_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_secret")
    settings = load(env_file=None)
    assert settings.hf_token is not None
    assert settings.hf_token.get_secret_value() == "hf_secret"
    assert "hf_secret" not in repr(settings)


def test_the_environment_takes_precedence_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".env"
    file.write_text("N_CTX=1024\nTOP_K=7\n# a comment\nUNKNOWN=1\n")
    monkeypatch.setenv("N_CTX", "2048")
    settings = load(env_file=file)
    assert (settings.n_ctx, settings.top_k) == (2048, 7)


def test_the_error_message_names_every_invalid_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_SEQUENCES", "0")
    monkeypatch.setenv("HTTP_ADDRESS", "localhost")
    with pytest.raises(SettingsError) as error:
        load(env_file=None)
    assert "MAX_SEQUENCES=0: should be greater than or equal to 1" in str(error.value)
    assert "HTTP_ADDRESS=localhost: should be host:port" in str(error.value)


def test_the_error_message_gives_value_and_allowed_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWLEDGE", "yes")
    monkeypatch.setenv("N_CTX", "lots")
    monkeypatch.setenv("QUANTIZE", "q9")
    with pytest.raises(SettingsError) as error:
        load(env_file=None)
    formats = ", ".join(repr(one) for one in ("auto", *get_args(QuantizedFormat)[:-1]))
    assert str(error.value).splitlines() == [
        f"QUANTIZE=q9: should be {formats} or 'bf16'",
        "N_CTX=lots: should be a valid integer",
        "KNOWLEDGE=yes: should be 'on' or 'off'",
    ]


def test_hosts_and_origins_are_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_HOSTS", "Chat.example.org, *.example.net,::1")
    monkeypatch.setenv("CORS_ALLOW_ORIGIN", "HTTPS://Chat.example.org:8443, app://local")
    settings = load(env_file=None)
    assert settings.allowed_hosts == ("chat.example.org", "*.example.net", "::1")
    assert settings.cors_allow_origin == ("https://chat.example.org:8443", "app://local")
    monkeypatch.setenv("ALLOWED_HOSTS", "http://chat.example.org")
    monkeypatch.setenv("CORS_ALLOW_ORIGIN", "https://chat.example.org/")
    with pytest.raises(SettingsError) as error:
        load(env_file=None)
    assert "ALLOWED_HOSTS=http://chat.example.org: should be host names without" in str(error.value)
    assert "CORS_ALLOW_ORIGIN=https://chat.example.org/: should be origins such as" in str(error.value)


@pytest.mark.parametrize("address", ["127.0.0.1:3030", "[::1]:80", "0.0.0.0:0"])
def test_valid_addresses_are_split(address: str) -> None:
    host, port = split_address(address)
    assert address in (f"{host}:{port}", f"[{host}]:{port}")


@pytest.mark.parametrize("address", ["", "3030", ":3030", "host:", "host:70000", "host:-1"])
def test_invalid_addresses_are_rejected(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(address)
