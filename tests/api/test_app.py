"""Responses before the model is loaded, over a real socket."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from app.api.app import create_app
from app.config.contexts import load_contexts
from app.config.settings import load
from app.service import Service
from app.telemetry.metrics import Metrics
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def loading_url() -> Iterator[str]:
    settings = load(env_file=None)
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


def test_health_is_ok_but_ready_answers_503(loading_url: str) -> None:
    assert httpx.get(f"{loading_url}/health").status_code == 200
    ready = httpx.get(f"{loading_url}/ready")
    assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
    assert int(ready.headers["retry-after"]) >= 1


def test_valid_requests_are_answered_503_loading(loading_url: str) -> None:
    answer = httpx.post(f"{loading_url}/token_stream", json={"query": "x"})
    assert answer.status_code == 503
    assert answer.json()["error_type"] == "loading"
    assert answer.headers["retry-after"]


def test_invalid_requests_are_answered_422(loading_url: str) -> None:
    assert httpx.post(f"{loading_url}/token_stream", json={"query": 3}).status_code == 422
