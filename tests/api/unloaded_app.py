"""The application without a model, over a real socket."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from app.api.app import create_app
from app.config.contexts import load_contexts
from app.config.settings import Settings
from app.service import Service
from app.telemetry.metrics import Metrics
from tests.conftest import ROOT


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """Serve on a free port of 127.0.0.1, whatever HTTP_ADDRESS is; yield the URL."""
    contexts = load_contexts(ROOT / Path("config/prompt_config.toml"))
    app = create_app(Service(settings, contexts, Metrics("test")))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
