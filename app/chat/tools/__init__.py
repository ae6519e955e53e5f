"""Tool calls in answers: the grammar that constrains them, and the parser that extracts them."""

from __future__ import annotations

from app.chat.tools.grammar import tool_grammar
from app.chat.tools.parser import ArgumentsDelta, CallDelta, ContentDelta, Delta, ToolCallParser

__all__ = ["ArgumentsDelta", "CallDelta", "ContentDelta", "Delta", "ToolCallParser", "tool_grammar"]
