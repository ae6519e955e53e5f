"""Streams of events that begin while their model loads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.api.app import create_app
from app.api.http import answering
from app.config.contexts import Context
from app.config.settings import load
from app.service import Service
from app.service.model import Model
from app.telemetry.metrics import Metrics
from app.weights.served import served_models
from tests.conftest import MODEL
from tests.tiny_models import TinyModel

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MESSAGES = [{"role": "user", "content": "Hello"}]
COMMENT = ": keep-alive\n\n"


@pytest.fixture(scope="module")
async def service(tiny_model: TinyModel) -> AsyncIterator[Service]:
    small = {"n_ctx": 1024, "max_sequences": 2, "prefix_cache_mb": 0, "model_threads": 1}
    settings = load(None, **small, flash_attention="on", models=f"smollm2,tiny={tiny_model('hybrid')}")
    served = served_models(settings)
    contexts = {"general": Context(prompt="You are a helpful assistant.")}
    service = Service(settings, contexts, Metrics("test", [one.name for one in served]), served)
    await service.load(MODEL, None, warm=())
    yield service
    await service.close()


async def post(service: Service, path: str, body: dict[str, Any]) -> httpx.Response:
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
        return await client.post(path, json={**body, "stream": True})


async def unload(service: Service) -> None:
    slot = service.models.find("tiny")
    if slot.model is not None:
        service.models.keep(slot, 0)
    while slot.state not in ("unloaded", "failed"):  # noqa: ASYNC110 # states of models have no event
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}, "data: [DONE]"),
        ("/v1/messages", {"messages": MESSAGES}, '{"type": "message_stop"}'),
    ],
)
async def test_comments_precede_the_answer_of_a_model_that_loads(
    service: Service, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], last: str
) -> None:
    monkeypatch.setattr(answering, "KEEP_ALIVE_AFTER", 0.05)
    await unload(service)
    asked = {**body, "max_tokens": 3, "model": "tiny"}
    response = await post(service, path, asked)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.startswith(COMMENT)
    answer = response.text[response.text.rindex(COMMENT) + len(COMMENT) :]
    assert answer.rstrip().endswith(last)
    again = await post(service, path, asked)  # the model is loaded
    assert again.text.count("data: ") == answer.count("data: ")


async def test_a_failed_load_is_the_last_event(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_arguments: Any, **_options: Any) -> None:
        raise MemoryError("forced")

    monkeypatch.setattr(Model, "__init__", failing)
    await unload(service)
    asked = {"messages": MESSAGES, "model": "tiny"}
    reason = "model: tiny cannot be loaded: MemoryError: forced"
    rejected = await post(service, "/v1/chat/completions", asked)  # before the first comment
    assert rejected.status_code == 503
    assert rejected.json()["error"]["message"] == reason
    monkeypatch.setattr(answering, "KEEP_ALIVE_AFTER", 0.05)
    response = await post(service, "/v1/chat/completions", asked)
    assert response.status_code == 200
    last = response.text.removesuffix("\n\n").rpartition("\n\n")[2]
    assert last.startswith('event: error\ndata: {"error":{')
    assert reason in last
    assert "model_not_loaded" in last
