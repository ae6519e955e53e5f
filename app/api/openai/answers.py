"""What answers of the OpenAI dialect are made of: choices, log-probabilities, usage."""

from __future__ import annotations

import secrets
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.engine.answer import Output
from app.engine.llama import Vocab
from app.engine.sampling.logprobs import Logprobs
from app.engine.sequence import FinishReason
from app.service import Generation, Model, together

_LETTERS = string.ascii_letters + string.digits
_FINISH_REASONS = {FinishReason.EOS: "stop", FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


def new_id(prefix: str) -> str:
    """An id that no other answer has."""
    return prefix + "".join(secrets.choice(_LETTERS) for _ in range(29))


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every body and every chunk of one answer says."""

    id: str
    object: str
    model: Model
    created: int = field(default_factory=lambda: int(time.time()))

    def wrap(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A body around choices."""
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": self.model.fingerprint,
            "choices": choices,
            **more,
        }


@dataclass(slots=True)
class Collected:
    """A whole answer."""

    generation: Generation
    text: str = ""
    outputs: list[Output] = field(default_factory=list)

    @property
    def mean_logprob(self) -> float:
        """By which the best of several answers is chosen."""
        logprobs = [output.logprobs.chosen for output in self.outputs if output.logprobs is not None]
        return sum(logprobs) / len(logprobs) if logprobs else 0.0


async def collect(generations: Sequence[Generation]) -> list[Collected]:
    """Receive several answers to their ends.

    Raises:
        GenerationFailed: One cannot be completed.
    """
    answers = [Collected(generation) for generation in generations]
    async for steps in together(generations):
        for index, step in steps:
            answers[index].text += step.text
            answers[index].outputs += step.outputs
    return answers


def best(answers: Sequence[Collected], n: int) -> list[Collected]:
    """The ``n`` answers that the model thinks likeliest for each token, best first."""
    if len(answers) == n:
        return list(answers)
    return sorted(answers, key=lambda answer: -answer.mean_logprob)[:n]


def finish_reason(generation: Generation) -> str:
    """Why an answer ended. Where nothing was to be generated it is its length."""
    return _FINISH_REASONS[generation.finish_reason or FinishReason.LENGTH]


def usage(generations: Sequence[Generation], *, n_prompts: int = 1) -> dict[str, Any]:
    """Tokens of a request: each prompt counts once, however many answers it has."""
    firsts = generations[:: max(1, len(generations) // n_prompts)]
    n_prompt = sum(generation.n_prompt for generation in firsts)
    n_generated = sum(generation.n_generated for generation in generations)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": {"cached_tokens": sum(generation.n_cached for generation in firsts)},
    }


# --- log-probabilities


def token_bytes(vocab: Vocab, token: int) -> bytes:
    """What a token adds to a text; a control token its name."""
    return vocab.piece(token) or vocab.text(token).encode()


def is_shown(vocab: Vocab, output: Output) -> bool:
    """Whether log-probabilities list a token: not the one that ends the answer and is no part of it."""
    return output.token not in vocab.end_of_generation


def chat_logprobs(vocab: Vocab, outputs: Sequence[Output]) -> dict[str, Any]:
    """The log-probabilities of some tokens in the form of chat completions."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = token_bytes(vocab, token)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    content = []
    for output in outputs:
        if output.logprobs is not None and is_shown(vocab, output):
            top = [entry(token, logprob) for token, logprob in output.logprobs.top]
            content.append({**entry(output.token, output.logprobs.chosen), "top_logprobs": top})
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """The log-probabilities of one text in the form of completions, whose offsets go on from call to call."""

    def __init__(self, vocab: Vocab, n_top: int) -> None:
        self._vocab = vocab
        self._n_top = n_top
        self._offset = 0

    def of_prompt(self, generation: Generation) -> dict[str, Any]:
        """Those of a prompt, whose first token has none."""
        known: list[Logprobs | None] = [None, *generation.prompt_logprobs]
        return self._lists(list(zip(generation.prompt, known, strict=True)))

    def of_answer(self, outputs: Sequence[Output]) -> dict[str, Any]:
        """Those of the next tokens of an answer."""
        return self._lists([(o.token, o.logprobs) for o in outputs if is_shown(self._vocab, o)])

    def _lists(self, entries: Sequence[tuple[int, Logprobs | None]]) -> dict[str, Any]:
        lists: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for token, logprobs in entries:
            text = self._text(token)
            lists["tokens"].append(text)
            lists["token_logprobs"].append(logprobs.chosen if logprobs else None)
            top = {self._text(other): logprob for other, logprob in logprobs.top} if logprobs else None
            lists["top_logprobs"].append(top)
            lists["text_offset"].append(self._offset)
            self._offset += len(self._vocab.piece(token).decode("utf-8", "replace"))
        return lists if self._n_top else {**lists, "top_logprobs": None}

    def _text(self, token: int) -> str:
        data = token_bytes(self._vocab, token)
        try:
            return data.decode()
        except UnicodeDecodeError:  # part of a character, written as OpenAI writes it
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def joined(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    """Two stretches of completion log-probabilities as one."""
    if first is None or second is None:
        return first or second
    return {name: first[name] and first[name] + second[name] for name in first}
