"""Requantized model files: types, reuse and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.engine.llama import Model
from bench import quantize
from bench.client import BenchError
from bench.quantize import requantized


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(quantize, "MODELS", tmp_path / "models")
    return tmp_path / "models"


@pytest.mark.parametrize("file_type", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.slow
def test_a_quantized_file_is_written_in_another_type(small_model: Path, file_type: str) -> None:
    path = requantized(small_model, file_type)
    assert path.name.endswith(f".{file_type}.gguf")
    model = Model(path)
    description = model.description
    model.close()
    assert description.endswith(f" {file_type}")


def test_a_file_is_written_once(small_model: Path, folder: Path) -> None:
    path = requantized(small_model, "Q8_0")
    written = path.stat()
    assert requantized(small_model, "Q8_0") == path
    assert path.stat() == written
    assert [*folder.iterdir()] == [path]


def test_a_failure_leaves_no_file(tmp_path: Path, folder: Path) -> None:
    source = tmp_path / "no.gguf"
    source.write_bytes(b"no GGUF")
    with pytest.raises(BenchError, match="cannot be quantized"):
        requantized(source, "Q8_0")
    assert [*folder.iterdir()] == []
