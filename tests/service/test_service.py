"""A service with the default model in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from app.api.app import create_app
from app.chat.messages import Message
from app.chat.prompt import PromptTokenizer
from app.config.contexts import load_contexts
from app.config.settings import SettingsError, load
from app.engine.answer import Answer
from app.engine.async_engine import AsyncEngine
from app.engine.embedder import Embedder
from app.engine.engine import Engine
from app.engine.llama import Model
from app.fit import preflight
from app.service import (
    ChatPrompt,
    GenerationFailed,
    KnowledgeUse,
    Loading,
    Service,
    UnknownContext,
    collect,
    receive,
    start,
)
from app.service.model import parts
from app.telemetry.metrics import Metrics
from app.weights.embedding import resolve_embedding_model
from tests.conftest import MODEL, ROOT

PROMPT = ChatPrompt((Message("user", "Count to ten."),))


def make_service(**settings: Any) -> Service:
    small = {
        "n_ctx": 1024,
        "max_sequences": 2,
        "model_threads": 1,
        "prefix_cache_mb": 0,
        "flash_attention": "on",
    }
    contexts = load_contexts(ROOT / "config/prompt_config.toml")
    return Service(load(None, **{**small, **settings}), contexts, Metrics("test"))


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = make_service()
    yield service
    await service.close()


@pytest.mark.anyio
async def test_the_model_is_freed_after_the_threads_that_read_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt is tokenized while the service closes."""
    await service.load(MODEL, None, warm=())
    started, may_end = threading.Event(), threading.Event()
    chat, freed = PromptTokenizer.chat, list[bool]()

    def slow(*arguments: Any, **options: Any) -> Any:
        started.set()
        may_end.wait(60)
        return chat(*arguments, **options)

    def close(model: Model) -> None:
        freed.append(may_end.is_set())
        free(model)

    free = Model.close
    monkeypatch.setattr(PromptTokenizer, "chat", slow)
    monkeypatch.setattr(Model, "close", close)
    request = asyncio.ensure_future(service.generate(PROMPT, {}))
    await asyncio.to_thread(started.wait, 60)
    closing = asyncio.ensure_future(service.close())
    await asyncio.sleep(0.2)  # enough to free a model
    may_end.set()
    await closing
    await asyncio.wait([request])
    request.exception()
    assert freed == [True]


@pytest.mark.anyio
async def test_a_failed_engine_is_reported_and_ends_the_service(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[str] = []
    await service.load(MODEL, None, warm=(), on_failure=failures.append)
    assert service.is_ready
    assert service.failure is None

    def failing(core: Engine) -> None:
        raise RuntimeError("forced")

    monkeypatch.setattr(Engine, "step", failing)
    [generation] = await service.generate(PROMPT, {})
    with pytest.raises(GenerationFailed, match="the engine failed: forced"):
        await collect([generation])
    assert failures == ["the engine failed: forced"]
    with pytest.raises(GenerationFailed, match="the engine failed: forced"):
        await service.generate(PROMPT, {})
    await assert_shows(service, "the engine failed: forced")


@pytest.mark.anyio
async def test_a_failed_embedding_model_is_reported_and_answers_continue(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[str] = []
    embedding_model = resolve_embedding_model(load(None))
    await service.load(MODEL, None, embedding_model, warm=(), on_failure=failures.append)
    assert service.is_ready

    def failing(*_: object) -> None:
        raise RuntimeError("forced")

    monkeypatch.setattr(Embedder, "_fill", failing)
    for _ in range(2):
        with pytest.raises(GenerationFailed, match="the embedding model failed: forced"):
            await service.encoders.embed(["The oak is old."])
    assert failures == ["the embedding model failed: forced"]
    await assert_shows(service, "the embedding model failed: forced")
    [generation] = await service.generate(PROMPT, {"max_tokens": 3})
    [answer] = await collect([generation])
    assert len(answer.outputs) == 3


async def assert_shows(service: Service, reason: str) -> None:
    assert not service.is_ready
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for path in ("/ready", "/health"):
            response = await client.get(path)
            assert response.status_code == 503
            assert response.json() == {"status": "failed", "reason": reason}


@pytest.mark.anyio
async def test_a_fault_in_the_second_answer_cancels_the_first(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.load(MODEL, None, warm=())
    submit, n_submitted = AsyncEngine.submit, 0

    def fail_at_the_second(engine: AsyncEngine, *arguments: Any, **options: Any) -> Answer:
        nonlocal n_submitted
        n_submitted += 1
        if n_submitted == 2:
            raise MemoryError("out of memory")
        return submit(engine, *arguments, **options)

    monkeypatch.setattr(AsyncEngine, "submit", fail_at_the_second)
    cancelled = []
    monkeypatch.setattr(AsyncEngine, "cancel", lambda _, answer: cancelled.append(answer))
    with pytest.raises(MemoryError):
        await service.generate(PROMPT, {}, n=2)
    assert len(cancelled) == 1


@pytest.mark.anyio
async def test_an_unexpected_error_in_one_answer_ends_the_wait_for_all(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.load(MODEL, None, warm=())

    def fail(*_: object) -> None:
        monkeypatch.undo()
        raise MemoryError("out of memory")

    generations = await service.generate(PROMPT, {"max_tokens": 3}, n=2)
    monkeypatch.setattr(Metrics, "on_first_token", fail)
    with anyio.fail_after(60), pytest.raises(MemoryError):
        await collect(generations)


@pytest.mark.anyio
async def test_a_fault_in_the_encoding_of_one_answer_does_not_end_others(service: Service) -> None:
    await service.load(MODEL, None, warm=())

    def fail(*_: object) -> None:
        raise ValueError("forced")

    [faulty] = await service.generate(PROMPT, {"max_tokens": 20})
    [other] = await service.generate(PROMPT, {"max_tokens": 20, "ignore_eos": True})
    with anyio.fail_after(60):
        ends = await asyncio.gather(receive([faulty], fail), collect([other]), return_exceptions=True)
    assert isinstance(ends[0], ValueError)
    assert [len(answer.outputs) for answer in ends[1]] == [20]  # type: ignore[union-attr]
    assert service.failure is None


@pytest.mark.anyio
@pytest.mark.slow
async def test_two_services_in_a_process_are_independent() -> None:
    services = [make_service(), make_service()]
    try:
        for served in services:
            await served.load(MODEL, None, warm=())
        texts = []
        for served in services:
            [generation] = await served.generate(PROMPT, {"max_tokens": 8})
            [answer] = await collect([generation])
            texts.append(answer.text)
            await served.close()  # the other service continues
        assert texts[0] == texts[1] != ""
    finally:
        for served in services:
            await served.close()


@pytest.mark.anyio
async def test_a_service_whose_model_fails_to_load_stays_loading(service: Service) -> None:
    too_long = make_service(max_total_tokens=4096)
    with pytest.raises(SettingsError, match="MAX_TOTAL_TOKENS=4096"):
        await too_long.load(MODEL, None, warm=())
    with pytest.raises(Loading):
        await too_long.generate(PROMPT, {})
    await too_long.close()


@pytest.mark.anyio
@pytest.mark.parametrize("context", ["", "nowhere"])
async def test_an_unknown_context_is_rejected_before_a_search(service: Service, context: str) -> None:
    await service.load(MODEL, None, warm=())
    prompt = replace(PROMPT, context=context, knowledge=KnowledgeUse(wanted=True))
    expected = f"context '{context}' is not defined; defined are: general"
    with pytest.raises(UnknownContext, match=expected):
        await service.generate(prompt, {})
    with pytest.raises(UnknownContext, match=expected):
        await service.tokens(prompt)


@pytest.mark.anyio
async def test_the_name_of_a_split_model_has_no_part_number(service: Service, tmp_path: Path) -> None:
    first = tmp_path / "tiny-00001-of-00001.gguf"
    first.symlink_to(MODEL)
    await service.load(first, None, warm=())
    assert service.model_name == "tiny"


def test_layers_on_a_missing_gpu_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    settings = load(None, model_gpu_layers=-1, contexts_file=ROOT / "config/prompt_config.toml")
    assert start.Start(settings).service.settings.model_gpu_layers == 0
    assert "MODEL_GPU_LAYERS=-1 has no effect" in caplog.text
    assert "make install GPU=cuda" in caplog.text


@pytest.mark.anyio
async def test_main_gpu_applies_to_preflight_and_memory_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, int] = {}

    def recording(name: str) -> Callable[..., None]:
        def record(*_arguments: Any, main_gpu: int, **_options: Any) -> None:
            received[name] = main_gpu

        return record

    monkeypatch.setattr(preflight, "check", recording("preflight"))
    monkeypatch.setattr(parts, "make_plan", recording("memory plan"))
    settings = load(None, main_gpu=3, contexts_file=ROOT / "config/prompt_config.toml")
    parts.memory_plan(settings, start.prepare(settings).model)
    assert received == {"preflight": 3, "memory plan": 3}
