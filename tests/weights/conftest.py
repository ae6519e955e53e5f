"""Fixtures of download tests: a hub on loopback, and processes that resolve models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.weights.hub_driver import Driver, Outcome, Resolve, environment, outcome_of
from tests.weights.hub_server import FakeHub, HubServer, serving

# huggingface_hub reads these at import.
READ_AT_IMPORT = {"HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_ETAG_TIMEOUT"}


@pytest.fixture(scope="session")
def hub_server() -> Iterator[HubServer]:
    with serving() as server:
        yield server


@pytest.fixture
def fake_hub(hub_server: HubServer) -> FakeHub:
    return hub_server.fresh()


@pytest.fixture(scope="session")
def warm(hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    home = str(tmp_path_factory.mktemp("home"))
    with Driver("--warm", HF_ENDPOINT=hub_server.url, HF_HOME=home) as driver:
        yield driver


@pytest.fixture(scope="session")
def cold() -> Iterator[Driver]:
    with Driver() as driver:
        yield driver


@pytest.fixture
def resolve(warm: Driver, cold: Driver, fake_hub: FakeHub, tmp_path: Path) -> Resolve:
    """Resolve in an empty folder with these variables. Fails on unexpected output on stderr."""

    def run(*, fresh_import: bool = False, **variables: str) -> Outcome:
        driver = cold if fresh_import or READ_AT_IMPORT & set(variables) else warm
        hub_here = {"HF_ENDPOINT": fake_hub.url, "HF_HOME": str(tmp_path / "home")}
        done = driver.run(tmp_path, environment(**(hub_here | variables)), tmp_path)
        return outcome_of(done.returncode, done.stdout, done.stderr, tmp_path)

    return run
