"""QUANTIZE: models in another number format."""

from __future__ import annotations

import logging
import shutil
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any, get_args

import pytest

from app.config.model_settings import QuantizedFormat
from app.config.settings import load
from app.engine.llama import Model
from app.engine.llama.quantization import FILE_TYPES
from app.machine.progress import Stage, reported_to
from app.weights import quantized as module
from app.weights.model import ModelError, resolve_model
from tests.tiny_models import TinyModel


@pytest.fixture
def source(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A model with F16 weights."""
    path = tmp_path / "tiny-F16.gguf"
    shutil.copyfile(tiny_model("sliding-window"), path)
    return path


def resolve(source: Path, folder: Path, file_type: str) -> Path:
    return resolve_model(
        load(None, model_path=source, models_dir=folder, quantize=file_type, model_threads=1)
    )


def test_all_formats_of_the_setting_are_known() -> None:
    assert set(get_args(QuantizedFormat)) == FILE_TYPES.keys() - {"f32"}


def test_a_model_is_converted_once_and_found_again(source: Path, tmp_path: Path) -> None:
    stages: list[Stage] = []
    with reported_to(stages.append):
        path = resolve(source, tmp_path / "models", "q8_0")
    assert path.name == "tiny.Q8_0.gguf"
    assert path.stat().st_size < 0.6 * source.stat().st_size
    model = Model(path)
    description = model.description
    model.close()
    assert "Q8_0" in description
    assert [stage.done for stage in stages if stage.name.startswith("quantizing tiny-F16")][-1] == 1

    written = path.stat()
    assert resolve(source, tmp_path / "models", "q8_0") == path
    assert path.stat() == written
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert resolve(source, tmp_path / "models", "q4_0") != path


def test_a_changed_source_is_converted_again(source: Path, tmp_path: Path) -> None:
    first = resolve(source, tmp_path / "models", "q8_0")
    shutil.copyfile(first, source)  # another content
    assert resolve(source, tmp_path / "models", "q4_0").parent != first.parent


def test_the_loss_of_a_second_quantization_is_told(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    q4 = resolve(source, tmp_path / "models", "q4_0")
    assert caplog.messages == []
    q8 = resolve(q4, tmp_path / "models", "q8_0")
    assert caplog.messages.pop() == (
        "tiny.Q4_0.gguf is quantized already (q4_0): q8_0 keeps nearly all of it, but not what q4_0 has lost"
    )
    caplog.clear()
    resolve(q8, tmp_path / "models", "q4_1")
    assert caplog.messages.pop() == (
        "tiny.Q8_0.gguf is quantized already (q8_0): q4_1 of it loses more than q4_1 of the original weights "
        "would"
    )
    assert resolve(q8, tmp_path / "models", "q8_0") == q8  # nothing to do


def test_a_full_disk_is_reported_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _path: usage(10**9, 10**9, 1000))
    with pytest.raises(ModelError, match=r"QUANTIZE=q8_0: .* may need .* MB and 1\.0 kB is free: free some"):
        resolve(source, tmp_path / "models", "q8_0")
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_failure_leaves_no_file(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(_source: Path, target: Path, *_arguments: Any, **_options: Any) -> None:
        target.write_bytes(source.read_bytes()[:1000])

    monkeypatch.setattr(module, "quantize", cut)
    with pytest.raises(ModelError, match="QUANTIZE=q8_0"):
        resolve(source, tmp_path / "models", "q8_0")
    assert not [*tmp_path.rglob("*.incomplete"), *(tmp_path / "models").rglob("*.gguf")]


def test_an_interrupted_conversion_is_started_again(source: Path, tmp_path: Path) -> None:
    path = resolve(source, tmp_path / "models", "q8_0")
    content = path.read_bytes()
    path.unlink()
    path.with_suffix(".incomplete").write_bytes(b"GGUF, of an ended process")
    threads = [threading.Thread(target=resolve, args=(source, tmp_path / "models", "q8_0")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == content
