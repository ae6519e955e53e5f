"""Calls of functions in a model's answer: the grammar that it keeps to, and the parser that finds them."""

from __future__ import annotations

from app.chat.tools.grammar import tool_grammar
from app.chat.tools.parser import ArgumentsDelta, CallDelta, ContentDelta, Delta, ToolCallParser

__all__ = ["ArgumentsDelta", "CallDelta", "ContentDelta", "Delta", "ToolCallParser", "tool_grammar"]
