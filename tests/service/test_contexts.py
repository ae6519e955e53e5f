"""Constraints of contexts, with the default model."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.chat.messages import Message, Tool
from app.config.contexts import Context, ContextsError, load_contexts
from app.config.settings import load
from app.engine.sequence import FinishReason
from app.service import BadRequest, ChatPrompt, Regex, Service, ToolUse, collect
from app.telemetry.metrics import Metrics
from tests.conftest import MODEL, ROOT

CONTEXTS = """
[contexts.general]
prompt = "You are a helpful assistant."
[contexts.json]
prompt = "Extract the order."
max_tokens = 64
json_schema = { type = "object", properties = { count = { type = "integer" } }, required = ["count"] }
[contexts.lark]
prompt = "Say yes or no."
grammar = 'start: ("yes" | "no") "!"'
[contexts.stopped]
prompt = "Count."
stop = ["4"]
regex = "1, 2, 3, 4, 5, [0-9, ]*"
"""
SETTINGS: dict[str, Any] = {
    "n_ctx": 2048,
    "max_sequences": 2,
    "model_threads": 1,
    "prefix_cache_mb": 0,
    "flash_attention": "on",
}


def make_service(contexts: str | None, folder: Path) -> Service:
    path = ROOT / "config/prompt_config.toml"
    if contexts is not None:
        path = folder / "contexts.toml"
        path.write_text(contexts)
    return Service(load(None, **SETTINGS, contexts_file=path), load_contexts(path), Metrics("test"))


async def answer(service: Service, context: str, question: str, **options: Any) -> tuple[str, FinishReason]:
    prompt = ChatPrompt((Message("user", question),), context)
    [answer] = await collect(await service.generate(prompt, options.pop("overrides", {}), **options))
    assert answer.generation.finish_reason is not None
    return answer.text, answer.generation.finish_reason


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    service = make_service(CONTEXTS, tmp_path_factory.mktemp("contexts"))
    await service.load(MODEL, None, warm=())
    yield service
    await service.close()


@pytest.mark.anyio
async def test_an_answer_conforms_to_the_constraint_of_its_context(service: Service) -> None:
    text, reason = await answer(service, "json", "I want three apples.")
    assert reason is not FinishReason.LENGTH
    assert isinstance(json.loads(text)["count"], int)
    assert (await answer(service, "lark", "Is water wet?"))[0] in ("yes!", "no!")


@pytest.mark.anyio
async def test_a_stop_string_of_a_context_ends_an_answer(service: Service) -> None:
    assert await answer(service, "stopped", "Go.") == ("1, 2, 3, ", FinishReason.STOP)
    text, _ = await answer(service, "stopped", "Go.", overrides={"stop": ("3",)})
    assert text == "1, 2, "


@pytest.mark.anyio
async def test_a_request_replaces_the_constraint_of_its_context(service: Service) -> None:
    text, _ = await answer(service, "lark", "Go.", constraint=Regex("[0-9]{3}", "regex"))
    assert re.fullmatch("[0-9]{3}", text)
    tool = Tool("look", None, {"type": "object", "properties": {}})
    tools = ToolUse((tool,), must_call=True)
    prompt = ChatPrompt((Message("user", "Look!"),), "lark", tools=tools)
    [called] = await collect(await service.generate(prompt, {"max_tokens": 40}))
    assert "tool_call" in called.text


@pytest.mark.anyio
async def test_the_shipped_contexts_give_a_statement_and_a_number(tmp_path: Path) -> None:
    service = make_service(None, tmp_path)
    try:
        await service.load(MODEL, None, warm=())
        for question in ("List all users", "Delete the orders of customer 5 and show the others"):
            text, reason = await answer(service, "sql", question)
            assert text.count(";") == 1, text
            assert text.endswith(";")
            assert reason is not FinishReason.LENGTH
        for question in ("What is 7 times 8?", "Explain in words why 12 - 5 is 7."):
            text, reason = await answer(service, "math", question)
            assert text[-1].isdecimal() or reason is FinishReason.LENGTH
    finally:
        await service.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("regex = '(a'", "regex cannot be enforced"),
        ("grammar = 'start: b'", 'unknown name: "b"'),
        ("json_schema = { type = 'nothing' }", "cannot be enforced"),
    ],
)
async def test_an_invalid_constraint_ends_the_start(line: str, message: str, tmp_path: Path) -> None:
    service = make_service(f"[contexts.general]\nprompt = ''\n{line}\n", tmp_path)
    try:
        with pytest.raises(ContextsError) as error:
            await service.load(MODEL, None)
    finally:
        await service.close()
    assert str(error.value).startswith(f"{tmp_path}/contexts.toml: context 'general': ")
    assert message in str(error.value)


@pytest.mark.anyio
async def test_a_regex_without_a_text_is_found_when_it_is_compiled(service: Service) -> None:
    constraints = service.model.preparation.constraints
    with pytest.raises(BadRequest, match="cannot be enforced"):
        constraints.compile(Context(prompt="", regex="a{1000}{1000}"))
