"""Names, settings and files of MODELS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.config.errors import UserError
from app.config.settings import load
from app.weights.served import one_model, served_models
from tests.conftest import MODEL
from tests.lora_adapters import write_adapter

TABLE = """
[models.small]
package = true
gigabytes = 0.1
context = 2048
[models.large]
repository = "example/large-GGUF"
file = "large.gguf"
gigabytes = 4.5
context = 8192
settings = { temperature = 0.6 }
"""


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "models.toml").write_text(TABLE)
    (tmp_path / "mine.Q4_1.gguf").symlink_to(MODEL)
    return {"models_file": tmp_path / "models.toml", "models_dir": tmp_path / "models"}


def test_entries_are_names_paths_and_both(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "mine.Q4_1.gguf"
    models = f"small, {path},tiny={path},chat=large"
    found = served_models(
        load(None, **settings, models=models, models_pinned="tiny", models_at_start="chat", top_k=7)
    )
    assert [one.name for one in found] == ["small", "mine.Q4_1", "tiny", "chat"]
    assert [one.path for one in found] == [MODEL, path, path, None]
    assert [one.n_bytes for one in found] == [MODEL.stat().st_size] * 3 + [4_500_000_000]
    assert [one.is_pinned for one in found] == [False, False, True, False]
    assert [one.at_start for one in found] == [True, False, True, True]
    assert [one.settings.temperature for one in found] == [0, 0, 0, 0.6]
    assert {one.settings.top_k for one in found} == {7}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"models": "small,phi"}, "MODELS=phi: .*a name of .*: small, large"),
        ({"models": "small,small"}, "MODELS=small,small: two models have the same name"),
        ({"models": "a:b=small"}, "MODELS: the name 'a:b=small' should begin with a letter"),
        ({"models": "a="}, "MODELS: a= should be followed by a path"),
        ({"models": "a=/nowhere/a.gguf"}, "MODELS, a: .*/nowhere/a.gguf: no such file"),
        ({"models": "small", "model": "large"}, "MODEL=large cannot be combined with MODELS"),
        ({"models": "small", "models_pinned": "b"}, "MODELS_PINNED: 'b' should be one of small, or `all`"),
        ({"models": "small", "lora": "b:x=/x.gguf"}, "LORA: b:x=/x.gguf: 'b' should be one of MODELS: small"),
        ({"models": "small,a={0}", "lora": "a:x=/x"}, "MODELS, a: LORA: x=/x: cannot be read"),
        ({"models": "small,a={0}", "lora": "a:x={1}"}, "MODELS, a: LORA: x=.* architecture qwen3.*has llama"),
    ],
)
def test_wrong_entries_are_named(
    settings: dict[str, Any], tmp_path: Path, given: dict[str, str], reason: str
) -> None:
    qwen = write_adapter(tmp_path / "qwen.gguf", architecture="qwen3", n_layers=1)
    filled = {name: value.format(MODEL, qwen) for name, value in given.items()}
    with pytest.raises(UserError, match=reason):
        served_models(load(None, **settings, **filled))


def test_adapters_belong_to_the_model_that_they_name(settings: dict[str, Any], tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "x.gguf", n_layers=1)
    given = {"models": f"small,b={MODEL}", "lora": f"x={adapter},b:y={adapter}:2,b:x={adapter}"}
    small, b = served_models(load(None, **settings, **given))
    scales = [{name: one.scale for name, one in served.adapters.items()} for served in (small, b)]
    assert scales == [{"x": 1}, {"y": 2, "x": 1}]
    assert b.settings.lora == (f"y={adapter}:2", f"x={adapter}")


def test_a_command_with_one_model_uses_the_first_or_the_named_one(settings: dict[str, Any]) -> None:
    given = {**settings, "models": f"chat=large,mine={MODEL}", "lora": "mine:x=x.gguf"}
    first, named = one_model(load(None, **given)), one_model(load(None, **given, model="mine"))
    assert (first.model_repo, first.temperature, first.lora) == ("example/large-GGUF", 0.6, ())
    assert (named.model_path, named.models, named.lora) == (MODEL, (), ("x=x.gguf",))
    with pytest.raises(UserError, match="MODEL=large: should be one of MODELS: chat, mine"):
        one_model(load(None, **given, model="large"))


def test_without_the_setting_there_is_one_model(settings: dict[str, Any]) -> None:
    [only] = served_models(load(None, **settings))
    assert (only.name, only.path, only.is_pinned) == ("", None, True)
