"""Prefill of next turns while the server is idle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from app.chat.messages import Message
from app.chat.prompt import PromptTokenizer
from app.chat.template.template import choose_template
from app.config.contexts import Context
from app.config.settings import load
from app.engine.async_engine import AsyncEngine
from app.engine.engine import EngineOptions
from app.engine.llama import Model
from app.engine.sampling.params import SamplingParams
from app.service import ChatPrompt
from app.service.preparing.limits import TokenLimits
from app.service.preparing.preparation import Preparation
from app.service.preparing.prompts import ToolUse
from tests.conftest import MODEL, ROOT, running_server
from tests.engine.conftest import Reports
from tests.engine.engine_calls import chat, submit
from tests.engine.test_engine_checkpoints import TOOLS, prompts, words
from tests.engine.test_engine_memory_kinds import KINDS, engine_of, n_prefilled
from tests.polling import figure, wait_for
from tests.tiny_models import TinyModel

TEMPLATES = ROOT / "tests/chat/templates"


@pytest.fixture
async def engine(model: Model) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(model, EngineOptions(n_ctx=1024, max_sequences=2, n_threads=1), Reports())
    engine.start()
    yield engine
    await engine.close()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["default", *KINDS])
async def test_a_turn_after_a_prefill_ahead_computes_only_its_new_text(
    tiny_model: TinyModel, kind: str
) -> None:
    """The template drops the thoughts of the last turn with its two calls of tools."""
    model = Model(MODEL if kind == "default" else tiny_model(kind))  # type: ignore[arg-type]
    template = choose_template(
        (TEMPLATES / "Qwen-Qwen3-0.6B.jinja").read_text(),
        special_tokens={"bos_token": "", "eos_token": "<|im_end|>"},
        vocabulary=model.vocab.control_tokens | model.vocab.added_tokens,
    )
    tokenizer = PromptTokenizer(model.vocab, template, finds_turns=not model.is_truncatable)
    contexts = {"general": Context(prompt="")}
    preparation = Preparation(load(None), contexts, model.vocab, tokenizer, TokenLimits(4000, 4096))
    turn = list(prompts(1))[2]
    text, thought, question = words(30, "text"), words(30, "thought"), Message("user", words(20, "next"))
    prompt = ChatPrompt(tuple(turn), tools=ToolUse(tuple(TOOLS)))

    async def ask(engine: AsyncEngine, messages: list[Message]) -> list[int]:
        asked = tokenizer.chat(messages, tools=TOOLS)
        params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
        answer = engine.submit(asked.tokens, params, checkpoints=asked.turn_ends)
        return [output.token async for output in answer]

    async with engine_of(model, max_sequences=1) as engine:
        await ask(engine, turn)
        before = n_prefilled(engine)
        await engine.prefill_ahead(preparation.next_turn(prompt, text, thought))
        await asyncio.sleep(0)
        ahead = n_prefilled(engine)
        assert ahead - before > 150
        for thoughts in ("", thought):  # clients send them or not
            await ask(engine, [*turn, Message("assistant", text, thoughts=thoughts), question])
            await asyncio.sleep(0)
            assert n_prefilled(engine) - ahead < 50
    template.close()


@pytest.mark.anyio
async def test_a_prefill_ahead_gives_way_to_requests(engine: AsyncEngine) -> None:
    reports = engine._observer
    assert isinstance(reports, Reports)
    prefix = chat(engine, words(400, "prefix"))[:400]
    ahead = asyncio.create_task(engine.prefill_ahead(prefix))
    with anyio.fail_after(120):
        while reports.prompt_tokens < 32:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert engine.n_unfinished == 0
    assert reports.all[-1].running == 0
    answer = submit(engine, "Hello", max_tokens=40, ignore_eos=True)
    tokens = [output.token async for output in answer]
    assert ahead.done()
    assert len(tokens) == 40
    steps = [report.prompt_tokens for report in reports.all]
    assert max(steps) < 64
    assert sum(steps) < 300, "the rest is not computed"
    follows = submit(engine, "Hello", max_tokens=40, ignore_eos=True)
    await engine.prefill_ahead(chat(engine, words(400, "other"))[:400])  # beside a request: no effect
    assert follows.sequence.finish_reason is None
    assert len([output async for output in follows]) == 40
    assert reports.prompt_tokens < 300
    again = engine.submit(prefix, SamplingParams(max_tokens=1))
    assert [output async for output in again]
    assert again.n_cached >= 32


def n_computed(usage: dict[str, Any]) -> int:
    return int(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.slow
def test_a_server_prefills_the_next_turn_while_it_is_idle(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text((TEMPLATES / "Qwen3.5-4B.jinja").read_text())
    question = {"role": "user", "content": "Write a list of twenty words."}
    fields = {"temperature": 0, "max_tokens": 120, "thinking_budget": 20, "ignore_eos": True}
    with running_server(tmp_path / "log", TOKENIZER_REPO=str(tmp_path)) as server:

        def ask(*messages: dict[str, str]) -> dict[str, dict[str, Any]]:
            body = {"messages": messages, **fields}
            response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=90).json()
            return {"usage": response["usage"], "message": response["choices"][0]["message"]}

        before = figure(server.url, "prompt_tokens_total")
        first = ask(question)
        answer, asked = first["message"], first["usage"]
        again = httpx.post(f"{server.url}/tokenize", json={"inputs": answer["content"]}).json()
        assert len(again) > 50
        expected = before + n_computed(asked) + len(again)
        wait_for(lambda: figure(server.url, "prompt_tokens_total") >= expected)
        said = {"role": "assistant", "content": answer["content"]}
        usage = ask(question, said, {"role": "user", "content": "Why?"})["usage"]
    assert n_computed(usage) < 20
