"""Several models in one service: the default model and tiny ones, loaded, used and unloaded."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.chat.messages import Message
from app.config.contexts import Context, ContextsError
from app.config.settings import load
from app.engine.client import LOCAL
from app.engine.engine import Engine
from app.fit.memory_plan import MemoryPlanError
from app.service import ChatPrompt, GenerationFailed, LoadFailed, Service, UnknownModel, collect
from app.service.contexts import ContextsFile
from app.service.model.model import Model
from app.telemetry.metrics import Metrics
from app.weights.served import served_models
from tests.conftest import MODEL
from tests.lora_adapters import write_adapter
from tests.tiny_models import TinyModel

PROMPT = ChatPrompt((Message("user", "Count to ten."),))
CONTEXTS = {
    "general": Context(prompt="You are a helpful assistant."),
    "law": Context(prompt="You are a lawyer.", model="a"),
}
# The default model needs 275 MiB, a tiny one 140 MiB.
ROOM_FOR_ONE_TINY_MODEL = 420

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def make_service(tiny_model: TinyModel, contexts: dict[str, Context], **settings: Any) -> Service:
    models = f"smollm2,a={tiny_model('hybrid')},b={tiny_model('sliding-window')}"
    sizes = {"n_ctx": 1024, "max_sequences": 2, "prefix_cache_mb": 0}
    same = {"model_threads": 1, "flash_attention": "on", "models": models, "models_pinned": "smollm2"}
    found = load(None, **{**sizes, **same, **settings})
    served = served_models(found)
    return Service(found, contexts, Metrics("test", [one.name for one in served]), served)


@pytest.fixture
async def start(tiny_model: TinyModel) -> AsyncIterator[Callable[..., Any]]:
    """Start services with given settings. They are closed after the test."""
    started: list[Service] = []

    async def start(**settings: Any) -> Service:
        service = make_service(tiny_model, CONTEXTS, **settings)
        started.append(service)
        await service.load(MODEL, None, warm=())
        return service

    yield start
    for service in started:
        await service.close()


@pytest.fixture(scope="module")
async def service(tiny_model: TinyModel) -> AsyncIterator[Service]:
    """A service for tests that may leave any model loaded."""
    service = make_service(tiny_model, CONTEXTS)
    await service.load(MODEL, None, warm=())
    yield service
    await service.close()


async def answer(service: Service, model: str | None, n_tokens: int = 3, **prompt: Any) -> str:
    """The name of the model that answers a request, which holds its place to the end."""
    asked = replace(PROMPT, model=model, **prompt)
    with service.admission.enter(LOCAL, 0) as place:
        overrides = {"max_tokens": n_tokens, "ignore_eos": True}
        [one] = await collect(await service.generate(asked, overrides, place=place))
        assert one.generation.n_generated == n_tokens
        return one.generation.model.name


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 # states of models have no event
            await asyncio.sleep(0.01)


async def test_the_least_recently_used_model_is_unloaded_for_another(start: Callable[..., Any]) -> None:
    service: Service = await start(models_memory=ROOM_FOR_ONE_TINY_MODEL)
    assert service.models.states == {"smollm2": "ready", "a": "unloaded", "b": "unloaded"}
    assert await answer(service, None) == "smollm2"
    assert await answer(service, "a") == "a"
    assert await answer(service, "b:latest") == "b"
    assert service.models.states == {"smollm2": "ready", "a": "unloaded", "b": "ready"}
    assert [one.name for one in service.models.facts] == ["smollm2", "a", "b"]


async def test_a_model_with_work_is_unloaded_after_it_and_before_new_work(start: Callable[..., Any]) -> None:
    """A request of another model waits for the running answer, and not for those that arrive later."""
    service: Service = await start(models_memory=ROOM_FOR_ONE_TINY_MODEL)
    order: list[str] = []

    async def ask(label: str, model: str) -> None:
        await answer(service, model)
        order.append(label)

    slot = service.models.find("a")
    lease = await service.models.acquire(slot)
    other = asyncio.ensure_future(ask("other", "b"))
    await until(lambda: slot.state == "unloading")
    later = asyncio.ensure_future(ask("later", "a"))
    await asyncio.sleep(0.2)
    assert lease.model is slot.model
    order.append("running")
    service.models.release(slot, lease)
    await asyncio.gather(other, later)
    assert order == ["running", "other", "later"]
    assert service.models.states == {"smollm2": "ready", "a": "ready", "b": "unloaded"}


async def test_requests_that_arrive_together_load_a_model_once(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them leaves while it waits. Then the model is idle, and unloaded after IDLE_UNLOAD."""
    service: Service = await start(idle_unload=0.3)
    load_, loaded = Model.load, list[str]()

    async def recording(name: str, *arguments: Any, **options: Any) -> Model:
        loaded.append(name)
        return await load_(name, *arguments, **options)

    monkeypatch.setattr(Model, "load", recording)
    asked = [asyncio.ensure_future(answer(service, "a")) for _ in range(4)]
    await until(lambda: service.models.find("a").state == "loading")
    asked[0].cancel()
    assert [await one for one in asked[1:]] == ["a", "a", "a"]
    assert loaded == ["a"]
    slot = service.models.find("a")
    assert slot.n_users == 0
    assert slot.model is not None
    model = weakref.ref(slot.model)
    await until(lambda: service.models.states["a"] == "unloaded")
    await until(lambda: model() is None)
    assert service.models.states["smollm2"] == "ready"  # pinned
    assert await answer(service, "a") == "a"
    assert loaded == ["a", "a"]


async def test_a_model_that_cannot_be_loaded_is_tried_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = asyncio.ensure_future(answer(service, None, 200))
    with monkeypatch.context() as patch:

        def failing(*_arguments: Any, **_options: Any) -> None:
            raise MemoryError("forced")

        patch.setattr(Model, "__init__", failing)
        asked = [asyncio.ensure_future(answer(service, "a")) for _ in range(2)]
        for one in asked:
            with pytest.raises(LoadFailed, match="a cannot be loaded: MemoryError: forced"):
                await one
    assert service.models.states == {"smollm2": "ready", "a": "failed", "b": "unloaded"}
    assert await answer(service, "a") == "a"
    assert await running == "smollm2"


async def test_a_failed_engine_ends_the_service_and_is_named(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service: Service = await start()
    assert await answer(service, "a") == "a"
    step = Engine.step
    ends = threading.Event()

    def failing(core: Engine) -> None:
        if ends.is_set() and threading.current_thread() is not threading.main_thread():
            raise RuntimeError("forced")
        step(core)

    monkeypatch.setattr(Engine, "step", failing)
    ends.set()
    with pytest.raises(GenerationFailed):
        await answer(service, "a")
    assert service.failure == "the engine of a failed: forced"
    assert not service.is_ready


async def test_a_context_names_its_model(service: Service, tiny_model: TinyModel) -> None:
    assert await answer(service, None, context="law") == "a"
    assert await answer(service, "b", context="law") == "b"
    wrong = {**CONTEXTS, "tax": Context(prompt="You are an accountant.", model="c")}
    with pytest.raises(ContextsError, match="context 'tax': model: 'c' does not exist; served are: smollm2"):
        make_service(tiny_model, wrong)


async def test_a_model_that_does_not_fit_ends_the_start(start: Callable[..., Any]) -> None:
    reason = "model a, with its share of MODELS_MEMORY=300: not enough memory: .* = 140 MiB of 25 MiB"
    with pytest.raises(MemoryPlanError, match=reason):
        await start(models_memory=300)


async def test_a_loading_model_is_freed_at_the_end(start: Callable[..., Any]) -> None:
    service: Service = await start()
    asked = asyncio.ensure_future(answer(service, "a"))
    await until(lambda: service.models.find("a").state == "loading")
    await service.close()
    with pytest.raises(GenerationFailed, match="shutting down"):
        await asked
    assert service.models.find("a").model is None


async def test_adapters_of_another_model_than_the_first(start: Callable[..., Any], tmp_path: Path) -> None:
    strong = write_adapter(tmp_path / "strong.gguf")
    lora = f"a:strong={strong},a:one={strong},b:one={strong}"
    service: Service = await start(models=f"smollm2,a={MODEL},b={MODEL}", lora=lora)

    async def text(model: str) -> str:
        overrides = {"max_tokens": 8, "ignore_eos": True, "temperature": 0}
        [one] = await collect(await service.generate(replace(PROMPT, model=model), overrides))
        return one.text

    assert await text("a:strong") == await text("strong") == await text("a:one:latest") != await text("a")
    with pytest.raises(UnknownModel, match="'one' is an adapter of several models: a:one, b:one"):
        await text("one")
    with pytest.raises(UnknownModel, match="'b:strong' does not exist; served are: b, b:one"):
        await text("b:strong")
    with pytest.raises(UnknownModel, match="'smollm2:strong' does not exist; served are: smollm2, a, b"):
        await text("smollm2:strong")


LONG = Context(prompt="right " * 600, model="a")


async def test_contexts_that_change_while_a_model_loads_are_checked(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service: Service = await start()
    load_ = Model.load

    async def changing(*arguments: Any, **options: Any) -> Model:
        service.contexts.replace({"general": CONTEXTS["general"], "tax": LONG})
        return await load_(*arguments, **options)

    monkeypatch.setattr(Model, "load", changing)
    assert await answer(service, "a") == "a"
    assert service.refused_contexts.keys() == {"tax"}


async def test_a_model_that_is_loaded_while_contexts_are_read_checks_them(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "contexts.toml"
    service: Service = await start(contexts_file=path)
    use = ContextsFile._use

    async def loading(file: ContextsFile, model: Model, changed: Any) -> None:
        if model.name == "b":  # the last one, so reading has passed the others
            assert await answer(service, "a") == "a"
        await use(file, model, changed)

    assert await answer(service, "b") == "b"
    monkeypatch.setattr(ContextsFile, "_use", loading)
    path.write_text(
        f'[contexts.general]\nprompt = "Answer."\n[contexts.tax]\nprompt = "{LONG.prompt}"\nmodel = "a"\n'
    )
    service.reload_contexts()
    await until(lambda: bool(service.refused_contexts))
    assert [*service.contexts] == ["general", "tax"]
    assert service.refused_contexts.keys() == {"tax"}
