"""A folder of saved states."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.engine.cache.state_files import StateFiles
from tests.engine.cache.state_files_rig import KEY, LARGE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "states"


@pytest.fixture
def states(folder: Path) -> StateFiles:
    return StateFiles(folder, KEY, max_bytes=LARGE)
