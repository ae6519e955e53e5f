"""LORA: entries, and headers of adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.config.errors import UserError
from app.config.settings import Settings
from app.engine import llama
from app.service.model.parts import load_adapters, memory_plan
from app.weights.adapters import adapters_of
from tests.conftest import MODEL
from tests.lora_adapters import write_adapter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    write_adapter(folder / "good.gguf")
    write_adapter(folder / "vector.gguf", kind="control_vector", n_layers=1)
    write_adapter(folder / "qwen.gguf", architecture="qwen3", n_layers=1)
    write_adapter(folder / "narrow.gguf", n_layers=1, n_missing=32)
    write_adapter(folder / "deep.gguf", n_layers=31)
    (folder / "text.gguf").write_text("hello")
    return folder


def settings(*entries: str) -> Settings:
    return Settings(_env_file=None, lora=entries)


def test_scales_are_part_of_the_identity(folder: Path) -> None:
    good = folder / "good.gguf"
    found = adapters_of(settings(f"a={good}", f"b={good}:0.5", f"c={good}:-2"))
    assert {name: one.scale for name, one in found.items()} == {"a": 1.0, "b": 0.5, "c": -2.0}
    assert len({one.identity for one in found.values()}) == 3


def test_the_memory_plan_counts_adapters(folder: Path) -> None:
    good = folder / "good.gguf"
    plans = [memory_plan(settings(*entries), MODEL) for entries in ((), (f"a={good}", f"b={good}"))]
    assert plans[1].weights - plans[0].weights == 2 * adapters_of(settings(f"a={good}"))["a"].n_bytes > 1e6


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["{0}/good.gguf"], "should have the form NAME=PATH or NAME=PATH:SCALE"),
        (["a="], "should have the form NAME=PATH"),
        (["a:b={0}/good.gguf"], "the name 'a:b' should begin with a letter"),
        (["latest={0}/good.gguf"], "should not be `latest`"),
        (["a={0}/good.gguf", "a={0}/good.gguf:2"], "the name a is there twice"),
        (["a={0}/absent.gguf"], "absent.gguf: cannot be read: No such file or directory"),
        (["a={0}/good.gguf:much"], "good.gguf:much: cannot be read"),
        (["a={0}/text.gguf"], "it is not a GGUF file"),
        ([f"a={MODEL}"], r"it is a whole model \(llama\) and no adapter, so set MODEL_PATH to it"),
        (["a={0}/vector.gguf"], "an adapter of type control_vector; only `lora` is supported"),
        (["a={0}/qwen.gguf"], "made for a model of architecture qwen3, and SmolLM2-.* has llama"),
        (["a={0}/narrow.gguf"], "it does not fit the model: .*incorrect shape"),
        (["a={0}/deep.gguf"], "it does not fit the model: .*blk.30.* does not exist in base model"),
    ],
)
def test_unsuitable_entries_and_files_are_rejected(
    folder: Path, model: llama.Model, entries: list[str], message: str
) -> None:
    given = settings(*(entry.format(folder) for entry in entries))
    with pytest.raises(UserError, match=message) as error:
        load_adapters(model, given)
    assert str(error.value).startswith("LORA: ")
    assert model.adapters == {}
