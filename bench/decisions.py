"""The loads of decisions and of classification. Each runs on a newly started server.

Tokenstream answers them by probabilities. The other servers generate one token per question, or the class.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.load import Figures, Scale, run_load
from bench.prompts import Context, Prompts, Question, Texts
from bench.servers import Server, Tokenstream

STATE = 1000  # tokens
N_QUESTIONS = 16
QUESTION = 12  # tokens
PREFILLED = STATE + N_QUESTIONS * (QUESTION + 10)  # with the text around each question
_TEXT = 60  # tokens of a text to classify
_N_TEXTS = 64
_CLASS = 2  # tokens of a generated class, with its end
_CONCURRENCY = 8


def classes(prompts: Prompts) -> tuple[Context, ...]:
    """A context with three classes."""
    text = Texts(prompts, "classifier").text(300)
    return (Context("classifier", f"{text}\n\nAnswer good, bad or fact.", ("good", "bad", "fact")),)


async def decide(server: Server, texts: Texts, scale: Scale) -> Figures:
    """Sixteen questions about a new state, then sixteen others about the same state."""
    await ask(server, texts.text(STATE), questions(texts))  # all slots have been used
    rounds = []
    for _ in range(scale.n(6, 2)):
        state = texts.text(STATE)
        rounds.append([await ask(server, state, asked) for asked in (questions(texts), questions(texts))])
    figures = {
        "first_per_second": median(N_QUESTIONS / first[0] for first, _ in rounds),
        "again_per_second": median(N_QUESTIONS / again[0] for _, again in rounds),
    }
    if isinstance(server, Tokenstream):
        figures["prefill"] = median(n_tokens / seconds for (seconds, n_tokens), _ in rounds)
    return figures


def questions(texts: Texts) -> list[str]:
    """New questions for ``ask``."""
    return [f"Is it true? {texts.text(QUESTION)}" for _ in range(N_QUESTIONS)]


async def ask(server: Server, state: str, asked: Sequence[str]) -> tuple[float, int]:
    """Ask questions about a state. Returns the seconds, and the number of tokens not from the cache."""
    if isinstance(server, Tokenstream):
        by_name = {str(i): {"type": "noul", "instructions": text} for i, text in enumerate(asked)}
        seconds, reply = await _post(server, "/v1/systemone", {"state": state, "questions": by_name})
        return seconds, reply["usage"]["input_tokens"] - reply["usage"]["cached_tokens"]
    whole = [Question.of(f"{state}\n\nQuestion: {text}\nAnswer with Yes or No.") for text in asked]
    return (await run_load(server, whole, N_QUESTIONS, 1)).seconds, 0


async def classify(server: Server, texts: Texts, scale: Scale) -> Figures:
    """Classes of distinct texts in a warm context."""
    [context] = server.setup.contexts
    await _classify(server, [texts.text(_TEXT) for _ in range(_CONCURRENCY)], context)
    sent = [texts.text(_TEXT) for _ in range(scale.n(_N_TEXTS, 16))]
    return {"per_second": len(sent) / await _classify(server, sent, context)}


async def _classify(server: Server, sent: Sequence[str], context: Context) -> float:
    """Classify texts. Returns the seconds."""
    if isinstance(server, Tokenstream):
        return (await _post(server, "/classify", {"queries": sent, "context": context.name}))[0]
    return (
        await run_load(server, [Question.of(text, context) for text in sent], _CONCURRENCY, _CLASS)
    ).seconds


async def _post(server: Server, route: str, body: dict[str, Any]) -> tuple[float, Any]:
    """Post a body. Returns the seconds, and the response."""
    started = time.perf_counter()
    reply = await server.post(route, body)
    return time.perf_counter() - started, reply
