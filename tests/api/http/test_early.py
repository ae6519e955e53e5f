"""Streams that begin while their model loads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import ollama
import pytest
from starlette.types import Message, Receive, Scope, Send

from app.api.app import create_app
from app.api.http import answering
from app.config.contexts import Context
from app.config.settings import load
from app.service import Service
from app.service.model.model import Model
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


class Begun(httpx.ASGITransport):
    """Notes in `event` that a response has begun."""

    def __init__(self, service: Service) -> None:
        app, self.event = create_app(service), threading.Event()

        async def noting(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_noting(message: Message) -> None:
                await send(message)
                self.event.set()

            await app(scope, receive, send_noting)

        super().__init__(noting)

    def fail_after(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the next loading of a model fail after the first part of a response."""

        def failing(*_arguments: Any, **_options: Any) -> None:
            assert self.event.wait(60)
            raise MemoryError("forced")

        monkeypatch.setattr(Model, "__init__", failing)
        monkeypatch.setattr(answering, "KEEP_ALIVE_AFTER", 0.05)


async def post(
    service: Service, path: str, body: dict[str, Any], transport: Begun | None = None
) -> httpx.Response:
    transport = transport or Begun(service)
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


@pytest.fixture
def transport(service: Service) -> Begun:
    return Begun(service)


@pytest.fixture
async def ollama_client(transport: Begun) -> AsyncIterator[ollama.AsyncClient]:
    async with ollama.AsyncClient("http://127.0.0.1", transport=transport) as client:
        yield client


async def test_ollamas_client_waits_with_lines_without_text(
    service: Service, ollama_client: ollama.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "KEEP_ALIVE_AFTER", 0.05)
    few: dict[str, Any] = {"options": {"num_predict": 3, "temperature": 0}, "stream": True}
    await unload(service)
    chat = [part async for part in await ollama_client.chat("tiny", MESSAGES, **few)]
    again = [part async for part in await ollama_client.chat("tiny", MESSAGES, **few)]  # it is loaded
    assert chat[0].message.content == ""
    assert [part.message.content for part in chat if part.message.content] == [
        part.message.content for part in again if part.message.content
    ]
    await unload(service)
    *before, last = [part async for part in await ollama_client.generate("tiny", "Hello", **few)]
    assert (before[0].response, before[0].model, before[0].done, last.done) == ("", "tiny", False, True)


async def test_a_failed_load_is_the_last_line_for_ollamas_client(
    service: Service, transport: Begun, ollama_client: ollama.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await unload(service)
    transport.fail_after(monkeypatch)
    parts = await ollama_client.chat("tiny", MESSAGES, stream=True)
    assert (await anext(parts)).message.content == ""
    with pytest.raises(ollama.ResponseError, match="tiny cannot be loaded: MemoryError: forced"):
        async for _ in parts:
            pass


async def test_a_failed_load_is_the_last_event(
    service: Service, transport: Begun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_arguments: Any, **_options: Any) -> None:
        raise MemoryError("forced")

    monkeypatch.setattr(Model, "__init__", failing)
    monkeypatch.setattr(answering, "KEEP_ALIVE_AFTER", 1000)
    await unload(service)
    asked = {"messages": MESSAGES, "model": "tiny"}
    reason = "model: tiny cannot be loaded: MemoryError: forced"
    rejected = await post(service, "/v1/chat/completions", asked)  # before the first comment
    assert rejected.status_code == 503
    assert rejected.json()["error"]["message"] == reason
    transport.fail_after(monkeypatch)
    response = await post(service, "/v1/chat/completions", asked, transport)
    assert response.status_code == 200
    last = response.text.removesuffix("\n\n").rpartition("\n\n")[2]
    assert last.startswith('event: error\ndata: {"error":{')
    assert reason in last
    assert "model_not_loaded" in last
