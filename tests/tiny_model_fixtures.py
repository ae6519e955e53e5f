"""The tiny models as a fixture, for modules that say ``pytest_plugins = ("tests.tiny_model_fixtures",)``."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tests.tiny_models import Kind, TinyModel, write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Path of the tiny model of a kind; each is written once a session."""
    folder = tmp_path_factory.mktemp("tiny_models")

    @functools.cache
    def path_of(kind: Kind) -> Path:
        return write_tiny_model(kind, folder / f"{kind}.gguf")

    return path_of
