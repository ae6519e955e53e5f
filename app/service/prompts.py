"""What a request asks, and what its answer has to keep to. Every dialect maps to these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.chat.messages import Message, Tool
from app.knowledge.chunk import Passage


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that the model may call.

    Attributes:
        tools: What there is.
        must_call: Whether the answer has to be a call.
        only: The name of the one tool that may be called; None where all may.
        parallel: Whether one answer may call several.
    """

    tools: tuple[Tool, ...]
    must_call: bool = False
    only: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class KnowledgeUse:
    """Whether and from which documents an answer draws.

    Attributes:
        wanted: Whether the knowledge base is asked; None leaves it to the context.
        files: The documents that are searched; None is all.
    """

    wanted: bool | None = None
    files: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, written by the model's chat template.

    Attributes:
        messages: The turns. Without a system turn among them the context's are put before.
        context: Whose turns those are; None is the default context.
        tools: What the model may call.
        continues: Whether the answer goes on with the last message, which is the assistant's.
        field: What the request calls the messages, for complaints.
        knowledge: What it draws on.
        passages: What was found there, best first.
    """

    messages: tuple[Message, ...]
    context: str | None = None
    tools: ToolUse | None = None
    continues: bool = False
    field: str = "messages"
    knowledge: KnowledgeUse = KnowledgeUse()
    passages: tuple[Passage, ...] = ()

    @property
    def n_characters(self) -> int:
        """How long its texts are."""
        return sum(len(message.content) for message in self.messages)


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A text, or tokens, that the model goes on with; no template and no context.

    Control tokens' texts in it are those tokens: who writes the whole prompt writes its markup too.

    Attributes:
        text: The text.
        tokens: In place of the text, its tokens.
        truncate: How many of its last tokens are used; None is all.
        suffix: What follows behind the gap that is to be filled; None where nothing does.
        field: What the request calls the text, for complaints.
    """

    text: str = ""
    tokens: tuple[int, ...] | None = None
    truncate: int | None = None
    suffix: str | None = None
    field: str = "prompt"

    @property
    def n_characters(self) -> int:
        """How long its texts are."""
        return len(self.text) + len(self.suffix or "")


Prompt = ChatPrompt | TextPrompt


@dataclass(frozen=True, slots=True)
class JSONSchema:
    """The answer is a JSON text that the schema validates."""

    schema: Mapping[str, Any] | bool
    field: str


@dataclass(frozen=True, slots=True)
class Regex:
    """The answer matches a regular expression as a whole."""

    pattern: str
    field: str


Constraint = JSONSchema | Regex
