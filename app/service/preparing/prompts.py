"""Prompts and constraints: the common types of all dialects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from app.chat.messages import Message, Tool
from app.knowledge.chunk import Passage


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Tools of a request.

    Attributes:
        tools: The declared tools.
        must_call: Whether the answer must be a tool call.
        only: Name of the only allowed tool; None allows all.
        parallel: Whether one answer may have several calls.
        strict: Names of the tools whose schemas are enforced completely, or else rejected.
    """

    tools: tuple[Tool, ...]
    must_call: bool = False
    only: str | None = None
    parallel: bool = True
    strict: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class KnowledgeUse:
    """Use of the knowledge base by a request.

    Attributes:
        wanted: Whether to search documents. None: the context's default.
        files: Names of the documents to search. None: all.
    """

    wanted: bool | None = None
    files: tuple[str, ...] | None = None


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


@dataclass(frozen=True, slots=True)
class ThinkingUse:
    """Thoughts before an answer.

    Attributes:
        wanted: Whether the model thinks. None: the default of the context, then of the template.
        effort: Amount of thoughts, if the template has it. ``none`` turns thinking off.
        budget: Maximum tokens of thoughts. None: the context's.
        options: Other variables of the chat template.
    """

    wanted: bool | None = None
    effort: Effort | None = None
    budget: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, rendered by the model's chat template.

    Attributes:
        messages: The turns. If none is a system turn, the context's turns precede them.
        context: Name of the context; None: the default.
        model: Name of the model; None: that of the context, else the default.
        adapter: Name of a LoRA adapter; None: that in ``model``, else that of the context.
        tools: Tools that the model may call.
        continues: Whether the answer continues the last message, an assistant message.
        field: Name of the request's field, for error messages.
        knowledge: Use of the knowledge base.
        passages: Passages to quote in the prompt, best first.
        n_waiting: New and changed documents that the search did not know.
        thinking: Thoughts before the answer.
        reduces_max_tokens: Whether a ``max_tokens`` beyond the room is reduced. Otherwise it is rejected.
    """

    messages: tuple[Message, ...]
    context: str | None = None
    tools: ToolUse | None = None
    continues: bool = False
    field: str = "messages"
    knowledge: KnowledgeUse = KnowledgeUse()
    passages: tuple[Passage, ...] = ()
    n_waiting: int = 0
    thinking: ThinkingUse = ThinkingUse()
    reduces_max_tokens: bool = True
    model: str | None = None
    adapter: str | None = None

    @property
    def n_characters(self) -> int:
        """Total length of its texts."""
        return sum(len(message.content) + len(message.thoughts) for message in self.messages)

    @property
    def shown(self) -> str:
        """Its texts, for a log line."""
        return "\n".join(f"{message.role}: {message.content}" for message in self.messages)


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A text, or tokens, to continue, without template and context.

    Texts of control tokens become those tokens, because the request contains the whole prompt.

    Attributes:
        text: The text.
        tokens: Token ids instead of the text.
        truncate: Number of last tokens to keep; None: all.
        suffix: Text after the gap to fill in; None: no gap.
        model: Name of the model; None: the default.
        adapter: Name of a LoRA adapter; None: that in ``model``.
        field: Name of the request's field, for error messages.
        reduces_max_tokens: Whether a ``max_tokens`` beyond the room is reduced. Otherwise it is rejected.
    """

    text: str = ""
    tokens: tuple[int, ...] | None = None
    truncate: int | None = None
    suffix: str | None = None
    field: str = "prompt"
    reduces_max_tokens: bool = True
    model: str | None = None
    adapter: str | None = None

    @property
    def n_characters(self) -> int:
        """Total length of its texts."""
        return len(self.text) + len(self.suffix or "")

    @property
    def shown(self) -> str:
        """Its text or tokens, for a log line."""
        return self.text if self.tokens is None else str(list(self.tokens))


Prompt = ChatPrompt | TextPrompt


@dataclass(frozen=True, slots=True)
class JSONSchema:
    """The answer is JSON that conforms to the schema.

    Attributes:
        schema: The schema.
        field: Name of the request's field, for error messages.
        strict: Whether a schema with unsupported keywords is rejected. Otherwise they are not enforced.
    """

    schema: Mapping[str, Any] | bool
    field: str
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Regex:
    """The whole answer matches a regular expression."""

    pattern: str
    field: str


@dataclass(frozen=True, slots=True)
class Lark:
    """The whole answer is a text of a grammar, in llguidance's dialect of Lark."""

    grammar: str
    field: str


Constraint = JSONSchema | Regex | Lark
