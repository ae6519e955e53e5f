"""A fixture for prompts of the default model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.prompts import Prompts
from tests.conftest import MODEL


@pytest.fixture(scope="session")
def prompts() -> Iterator[Prompts]:
    prompts = Prompts(MODEL)
    yield prompts
    prompts.close()
