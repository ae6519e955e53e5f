"""Variables without an effect."""

from __future__ import annotations

from app.config.settings import load
from app.config.unused import unused_variables


def test_variables_without_an_effect_are_named_with_a_reason() -> None:
    settings = load(None, data_path="papers", main_gpu=1)
    messages = list(unused_variables(settings, {"HTTP_WORKERS": "4", "RUST_LOG": "info", "PATH": "/bin"}))
    assert [message.partition(" has no effect")[0] for message in messages] == [
        "HTTP_WORKERS=4",
        "RUST_LOG=info",
        "DATA_PATH",
        "MAIN_GPU=1",
    ]
    assert all(": " in message or "; " in message for message in messages)


def test_used_variables_are_not_named() -> None:
    settings = load(None, data_path="papers", knowledge="on", main_gpu=1, model_gpu_layers=-1)
    assert not list(unused_variables(settings, {"HTTP_WORKERS": ""}))
