"""The turns of a conversation as the chat template gets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from app.chat.messages import Message
from app.config.contexts import Context


def in_context(context: Context, messages: Sequence[Message]) -> list[Message]:
    """Prepend the context's turns, unless the messages have a system turn."""
    if any(message.role == "system" for message in messages):
        return list(messages)
    described = [f"{name}: {text}" for name, text in (context.choices or {}).items() if text]
    system = "\n".join(part for part in (context.prompt, *described) if part)
    turns = [Message("system", system)] if system else []
    for example in context.examples:
        turns += [Message("user", example.query), Message("assistant", example.answer)]
    return [*turns, *messages]


def with_one_system_turn(messages: Sequence[Message]) -> list[Message]:
    """The messages for templates with one system turn. Later system turns are user turns at their places."""
    n_system = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    system = "\n\n".join(message.content for message in messages[:n_system])
    later = [replace(m, role="user") if m.role == "system" else m for m in messages[n_system:]]
    return [*([Message("system", system)] if n_system else []), *later]
