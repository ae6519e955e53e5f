"""Fixtures: prompts of the default model, and a small model of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from bench.prompts import Prompts
from bench.random_model import Shape, write
from bench.servers import OPENVINO_PYTHON
from tests.conftest import MODEL

needs_openvino = pytest.mark.skipif(
    not OPENVINO_PYTHON.exists(), reason="make bench OPENVINO=on installs OpenVINO GenAI"
)

SMALL = Shape(n_layers=2, width=256, n_heads=4, n_kv_heads=1, feed_forward=512)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Q4_K_M file."""
    path = tmp_path_factory.mktemp("models") / "small.Q4_K_M.gguf"
    write(path, SMALL, MODEL)
    return path


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    """A GGUF without a model: one tensor each of types F32 and F16. It is read faster than a vocabulary."""
    path = tmp_path / "source" / "small.gguf"
    path.parent.mkdir()
    writer = GGUFWriter(path, "llama")
    for dtype in (np.float32, np.float16):
        writer.add_tensor(dtype.__name__, np.zeros(8, dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def prompts() -> Iterator[Prompts]:
    prompts = Prompts(MODEL)
    yield prompts
    prompts.close()
