"""Models by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.config.named_models import NamedModelError, load_named_models
from app.config.settings import SettingsError, load
from tests.conftest import ROOT

SHIPPED = ROOT / "config" / "models.toml"
EXPECTED = """
mistral zephyr openchat-3.5 starling phi-1 phi-1.5 phi-2 phi-3.5-mini phi-4-mini llama-2-7b llama-2-13b
llama-3.2-1b llama-3.2-3b qwen2.5-0.5b qwen2.5-1.5b qwen3-0.6b qwen3-1.7b gemma-3-1b gemma-3-4b smollm2"""


def test_the_shipped_models_have_valid_settings() -> None:
    models = load_named_models(SHIPPED)
    assert set(EXPECTED.split()) <= models.keys()
    for name, model in models.items():
        settings = load(None, model=name)
        assert settings.model_repo == model.repository
        assert settings.model_file == model.file


def test_a_name_sets_the_files_and_defaults_of_unset_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE", "qwen3-1.7b")
    monkeypatch.setenv("MODEL_PATH", "other.gguf")
    monkeypatch.setenv("TOP_K", "7")
    settings = load(None, top_p="0.5")
    assert settings.model_repo == "Qwen/Qwen3-1.7B-GGUF"
    assert settings.model_file == "Qwen3-1.7B-Q8_0.gguf"
    assert settings.model_path is None
    assert (settings.temperature, settings.top_k, settings.top_p) == (0.6, 7, 0.5)
    assert load(None, model="packages/other.gguf").model_path == Path("packages/other.gguf")


def test_an_unknown_name_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(NamedModelError) as error:
        load(None, model="qwen3-17b")
    message = str(error.value)
    assert message.startswith(
        "MODEL=qwen3-17b: did you mean qwen3-1.7b? It should be the path of a GGUF file"
    )
    assert "llama-3.2-1b, llama-3.2-3b" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = 3", "should have tables [models.NAME] only"),
        ("[models.a]\ngigabytes = 1.0\ncontext = 1", "models.a: repository and file are required"),
        ("[models.a]\npackage = true\ngigabytes = 0\ncontext = 1", "models.a.gigabytes: Input should be gr"),
        (
            "[models.a]\npackage = true\ngigabytes = 1\ncontext = 1\nsettings = { api_key = 'x' }",
            "models.a: settings.api_key should be one of flash_attention, kv_type",
        ),
    ],
)
def test_an_invalid_file_is_reported(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text(text)
    with pytest.raises(NamedModelError) as error:
        load(None, model="a", models_file=path)
    assert str(error.value).startswith(f"MODELS_FILE={path}: {message}")


def test_an_invalid_default_of_a_model_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text("[models.a]\npackage = true\ngigabytes = 1\ncontext = 1\nsettings = { top_p = 2.0 }")
    with pytest.raises(SettingsError, match=r"TOP_P=2\.0: should be less than or equal to 1"):
        load(None, model="a", models_file=path)
