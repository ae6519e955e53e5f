"""Conversations of agents with models whose memory cannot be truncated.

The template drops thoughts of past turns, as many do, so a turn is seldom a continuation of the last one.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.chat.messages import Message, Tool, ToolCall
from app.chat.prompt import ChatTokens, PromptTokenizer
from app.chat.template.template import choose_template
from app.engine.async_engine import AsyncEngine
from app.engine.cache.prefix_tree import n_shared_tokens
from app.engine.llama import Context, Model, Vocab
from app.engine.sampling.params import SamplingParams
from tests.engine.conftest import Reports
from tests.engine.test_engine_memory_kinds import KINDS, engine_of, n_prefilled
from tests.tiny_models import HYBRIDS, Kind, TinyModel

pytestmark = pytest.mark.anyio

TEMPLATE = Path(__file__).parent.parent / "chat/templates/Qwen-Qwen3-0.6B.jinja"
TOOLS = [
    Tool(
        name,
        f"Tends the {name} of a lighthouse",
        {"properties": {"place": {"type": "string"}}, "type": "object"},
    )
    for name in ("lamp", "horn", "flag", "boat")
]
SYSTEM = Message("system", "Speak like the keeper of a lighthouse. " * 10)


WORDS = ["geese", "storm", "harbour", "lamp", "north", "seven"]


def words(n: int, seed: object) -> str:
    return " ".join(random.Random(str(seed)).choices(WORDS, k=n))


def prompts(seed: int) -> Iterator[list[Message]]:
    """The messages of twelve requests: four questions, each with two calls of tools before its answer."""
    messages = [SYSTEM]
    for question in range(4):
        messages.append(Message("user", f"{seed} {words(20, question)}"))
        yield list(messages)
        for n in range(2):
            call = ToolCall(f"call_{question}{n}", TOOLS[n].name, json.dumps({"place": words(3, n)}))
            messages.append(Message("assistant", tool_calls=(call,), thoughts=words(25, (seed, question, n))))
            messages.append(Message("tool", words(40, (question, n, seed)), tool_call_id=call.id))
            yield list(messages)
        messages.append(Message("assistant", words(20, question), thoughts=words(25, (seed, question))))


@pytest.fixture(scope="module")
def tokenizer(vocab: Vocab) -> Iterator[PromptTokenizer]:
    known = vocab.control_tokens | vocab.added_tokens
    special = {"bos_token": "", "eos_token": "<|im_end|>"}
    template = choose_template(TEMPLATE.read_text(), special_tokens=special, vocabulary=known, time_limit=10)
    yield PromptTokenizer(vocab, template, finds_turns=True)
    template.close()


@pytest.fixture(scope="module")
def vocab(model: Model) -> Vocab:
    return model.vocab


class Agent:
    """Sends requests to an engine, and counts the tokens that no earlier request had."""

    def __init__(self, engine: AsyncEngine, tokenizer: PromptTokenizer) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        self.n_new = self.n_prefilled = 0
        self._texts: list[list[int]] = []

    async def ask(self, messages: list[Message]) -> list[int]:
        chat: ChatTokens = self.tokenizer.chat(messages, tools=TOOLS)
        before, prompt = n_prefilled(self.engine), chat.tokens
        known = max((n_shared_tokens(prompt, text) for text in self._texts), default=0)
        params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        answer = self.engine.submit(prompt, params, checkpoints=chat.turn_ends)
        tokens = [output.token async for output in answer]
        await asyncio.sleep(0)  # the report of the last step arrives after its tokens
        self._texts.append(prompt + tokens[:-1])
        self.n_new += len(prompt) - min(known, len(prompt) - 1)
        self.n_prefilled += n_prefilled(self.engine) - before
        return tokens


@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in HYBRIDS)])
async def test_an_agent_prefills_little_more_than_its_new_tokens(
    tiny_model: TinyModel, tokenizer: PromptTokenizer, kind: Kind
) -> None:
    """Two conversations take turns in one slot. The last turn of one is then edited."""
    model = Model(tiny_model(kind))
    async with engine_of(model, n_ctx=8192, max_sequences=1) as engine:
        agent = Agent(engine, tokenizer)
        for first, second in zip(prompts(1), prompts(2), strict=True):
            await agent.ask(first)
            last = await agent.ask(second)
        assert agent.n_prefilled < 1.2 * agent.n_new
        edited = [*first[:-3], Message("user", words(20, "edited"))]
        await agent.ask(edited)
        assert agent.n_prefilled < 1.2 * agent.n_new
        assert agent.n_new > 1000
    model = Model(tiny_model(kind))
    async with engine_of(model, n_ctx=8192, max_sequences=1) as engine:
        assert await Agent(engine, tokenizer).ask(second) == last


@pytest.mark.parametrize("kind", ["recurrent", "hybrid"])
async def test_a_small_budget_keeps_the_tools_and_the_last_turns(
    tiny_model: TinyModel, tokenizer: PromptTokenizer, kind: Kind
) -> None:
    """Of the states at a budget of six, the one after the tools saves the most prefill."""
    model = Model(tiny_model(kind))
    size = {"recurrent": 40_000, "hybrid": 1_200}[kind]
    async with engine_of(model, n_ctx=8192, max_sequences=1, prefix_bytes=6 * size) as engine:
        agent = Agent(engine, tokenizer)
        for messages in prompts(1):
            await agent.ask(messages)
        assert agent.n_prefilled < 1.2 * agent.n_new
        assert isinstance(engine._observer, Reports)
        figures = engine._observer.all[-1].cache
        assert figures.n_evicted > 0
        assert figures.n_checkpoints > figures.n_states
        before = agent.n_prefilled
        await agent.ask(next(prompts(2)))
        assert agent.n_prefilled - before < 100, "the tools are prefilled again"


async def test_a_checkpoint_that_cannot_be_restored_or_saved_costs_a_prefill(
    tiny_model: TinyModel,
    tokenizer: PromptTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = (next(prompts(seed)) for seed in (1, 2))
    save, restore = Context.save_sequence, Context.restore_sequence

    def save_complete(context: Context, slot: int, *, partial: bool = False) -> Any:
        if partial:
            raise RuntimeError("forced")
        return save(context, slot)

    def restore_complete(context: Context, slot: int, state: Any, *, partial: bool = False) -> bool:
        return not partial and restore(context, slot, state)

    answers = []
    for method, replacement, message in (
        ("restore_sequence", restore_complete, "does not fit into KV memory: it is computed again"),
        ("save_sequence", save_complete, "cannot be copied: forced"),
        ("save_sequence", save, ""),
    ):
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Context, method, replacement)
            async with engine_of(Model(tiny_model("hybrid")), n_ctx=8192, max_sequences=1) as engine:
                agent = Agent(engine, tokenizer)
                await agent.ask(first)
                before = agent.n_prefilled
                answers.append(await agent.ask(second))
                assert (agent.n_prefilled - before > 400) == bool(message)
        assert message in caplog.text
    assert answers[0] == answers[1] == answers[2]
