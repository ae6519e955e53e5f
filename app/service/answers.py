"""Complete answers, thoughts, tool calls and token texts from generations, for every dialect."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.chat.tools import ArgumentsDelta, CallDelta, ContentDelta, Delta, ToolCallParser
from app.engine.answer import Output
from app.engine.llama import Vocab
from app.service.model.generation import Generation, Step, receive
from app.service.model.model import Model
from app.service.preparing.prompts import ToolUse


@dataclass(slots=True)
class Collected:
    """The steps of one generation so far."""

    generation: Generation
    text: str = ""
    thought: str = ""
    outputs: list[Output] = field(default_factory=list)

    def add(self, step: Step) -> None:
        self.text += step.text
        self.thought += step.thought
        self.outputs += step.outputs

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the tokens; 0 without log-probabilities."""
        logprobs = [output.logprobs.chosen for output in self.outputs if output.logprobs is not None]
        return sum(logprobs) / len(logprobs) if logprobs else 0.0


async def collect(generations: Sequence[Generation]) -> list[Collected]:
    """Receive all steps of generations.

    Raises:
        GenerationFailed: A generation failed.
    """
    answers = [Collected(generation) for generation in generations]
    await receive(generations, lambda index, step: answers[index].add(step))
    return answers


def best(answers: Sequence[Collected], n: int) -> list[Collected]:
    """The ``n`` answers with the highest mean log-probability, best first. Exactly ``n`` keep their order."""
    if len(answers) == n:
        return list(answers)
    return sorted(answers, key=lambda answer: -answer.mean_logprob)[:n]


# --- thoughts and tool calls


@dataclass(frozen=True, slots=True)
class ThoughtDelta:
    """More text of a thought before the answer."""

    text: str


Part = ThoughtDelta | Delta


@dataclass(slots=True)
class GatheredCall:
    """A tool call.

    Attributes:
        id: Unique id.
        name: Name of the function.
        arguments: JSON text of an object; incomplete if ``max_tokens`` or a stop string ended the answer.
    """

    id: str
    name: str
    arguments: str = ""

    def parsed(self) -> dict[str, Any] | None:
        """The arguments. None if they are incomplete."""
        try:
            arguments = json.loads(self.arguments)
        except ValueError:
            return None
        return arguments if isinstance(arguments, dict) else None

    @property
    def is_complete(self) -> bool:
        return self.parsed() is not None


class AnswerReader:
    """Separates the thoughts and the tool calls of one answer from its text.

    Attributes:
        calls: Tool calls so far. The last one may be incomplete.
    """

    def __init__(self, model: Model, tools: ToolUse | None) -> None:
        """Start an answer; ``tools``: the prompt's tools. None: all of the answer is text."""
        self.calls: list[GatheredCall] = []
        self._parser: ToolCallParser | None = None
        if tools is not None:
            tool_format = model.tokenizer.template.tool_format
            self._parser = ToolCallParser(tool_format, tools.tools)

    def read(self, step: Step) -> Sequence[Part]:
        """The thoughts, the text and the parts of tool calls that are final after the next step."""
        is_last = step.outputs[-1].finish_reason is not None
        deltas = self._read(step.text, is_last=is_last)
        return [ThoughtDelta(step.thought), *deltas] if step.thought else deltas

    def read_all(self, text: str) -> tuple[str, list[GatheredCall]]:
        """The content and the tool calls of a complete answer."""
        deltas = self._read(text, is_last=True)
        content = "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))
        return content, self.calls

    @property
    def has_calls(self) -> bool:
        """Whether the answer has a complete tool call."""
        return any(call.is_complete for call in self.calls)

    def _read(self, text: str, *, is_last: bool) -> Sequence[Delta]:
        if self._parser is None:
            return (ContentDelta(text),) if text else ()
        deltas = self._parser.feed(text)
        if is_last:
            deltas += self._parser.finish()
        for delta in deltas:
            if isinstance(delta, CallDelta):
                self.calls.append(GatheredCall(delta.id, delta.name))
            elif isinstance(delta, ArgumentsDelta):
                self.calls[delta.index].arguments += delta.text
        return deltas


# --- token texts


def token_bytes(vocab: Vocab, token: int) -> bytes:
    """UTF-8 bytes of a token, possibly part of a character. For a control token, its name."""
    return vocab.piece(token) or vocab.text(token).encode()


def shown(vocab: Vocab, outputs: Iterable[Output]) -> list[Output]:
    """The outputs of the answer: without thoughts and end-of-generation tokens."""
    return [
        output for output in outputs if not output.is_thought and output.token not in vocab.end_of_generation
    ]
