"""Grammar of answers with optional or required tool calls, in llguidance's dialect of Lark.

Syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from app.chat.messages import Tool
from app.chat.tools.format import ToolFormat, special_pattern

# Compact JSON needs the fewest tokens and rules out endless white space.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# A complete string, or another character except white space, such as the quote of an incomplete string.
_JSON_TOKENS = re.compile(r'"[^"]*"|\S')
_SPACE = "[ \\t\\n]{0,8}"
# Llama models write this even if their template does not.
_TYPE = f'({_SPACE}"type"{_SPACE}:{_SPACE}"function"{_SPACE},)?'
_ANY_TEXT = "TEXT: /(?s:.*)/"


def tool_grammar(
    format_: ToolFormat,
    tools: Sequence[Tool],
    *,
    choice: str,
    parallel: bool,
    special_tokens: Mapping[str, int],
) -> str:
    """Grammar of answers. The arguments of each call conform to the schema of the function's parameters.

    The grammar is not compiled here. llguidance reports unsupported schemas when it compiles the grammar.

    Args:
        format_: Format of calls.
        tools: At least one function.
        choice: ``required``: a call of any function. ``auto``: text, optionally followed by calls. A name: a
            call of that function.
        parallel: Whether an answer may have several calls, if the format supports that.
        special_tokens: Ids of control tokens by text. In the format these texts become the tokens.

    Raises:
        ValueError: ``choice`` names no function of ``tools``.
    """
    if choice not in ("auto", "required"):
        tools, parallel = [tool for tool in tools if tool.name == choice], False
        if not tools:
            raise ValueError(f"choice {choice!r}: should be auto, required, or the name of one of the tools")
    writer = _Writer(format_, special_tokens)
    more = f"({writer.literal(format_.separator)} call)*" if parallel and format_.separator else ""
    rest = f"{more} {writer.literal(format_.end)}"
    rules = [
        *(writer.auto(rest) if choice == "auto" else [f"start: {writer.literal(format_.begin)} call {rest}"]),
        f"call: {writer.literal(format_.head)} named",
        f"named: {' | '.join(f'named_{number}' for number in range(len(tools)))}",
        *(rule for number, tool in enumerate(tools) for rule in writer.named(number, tool)),
    ]
    return "%llguidance {}\n" + "\n".join(rules) + "\n"


class _Writer:
    """Writes the rules of one format."""

    def __init__(self, format_: ToolFormat, special_tokens: Mapping[str, int]) -> None:
        self._format = format_
        self._special_tokens = special_tokens
        self._special = special_pattern(special_tokens.keys())

    def literal(self, text: str) -> str:
        """A text as a rule; texts of special tokens become those tokens."""
        parts: list[str] = []
        end = 0
        for match in self._special.finditer(text):
            parts += [_quoted(text[end : match.start()]), f"<[{self._special_tokens[match[0]]}]>"]
            end = match.end()
        return " ".join(filter(None, [*parts, _quoted(text[end:])]))

    def auto(self, rest: str) -> list[str]:
        """Rules of text that calls may follow; ``rest`` follows the first call."""
        begin, marker = self._format.begin, self._format.marker
        special = self._special.search(begin)
        if special:  # ordinary text has no control tokens, so the token marks a call
            return [f"start: TEXT | TEXT? {self.literal(begin[special.start() :])} call {rest}", _ANY_TEXT]
        if marker:
            return [
                f"start: TEXT | marked {self.literal(begin[len(marker) :])} call {rest}",
                f"marked[lazy]: TEXT {_quoted(marker)}",
                _ANY_TEXT,
            ]
        # Without a marker, an answer is a call if it begins like one, regardless of white space.
        opening = _SPACE + _SPACE.join(map(re.escape, _JSON_TOKENS.findall(begin + self._format.head)))
        opening = opening.replace("\\{", f"\\{{{_TYPE}", 1)
        return [
            f"start: TEXT | OPENING named {rest}",
            f"OPENING: /{opening}/",
            f"TEXT: /(?s:.*)/ & ~/{opening}(?s:.*)/",
        ]

    def named(self, number: int, tool: Tool) -> list[str]:
        """Rules of a call, from the name to the end."""
        format_ = self._format
        id_ = ""
        if format_.id_text:
            before, after = map(self.literal, format_.id_text)
            id_ = f"({before} /[A-Za-z0-9]{{9}}/ {after})?"
        # A separate schema document: its references are relative to itself.
        schema = json.dumps({**tool.schema, "x-guidance": _JSON_STYLE}, ensure_ascii=False)
        name = f"{_quoted(tool.name)} {self.literal(format_.middle)}"
        return [
            f"named_{number}: {name} arguments_{number} {id_} {self.literal(format_.tail)}",
            f"arguments_{number}: %json {schema.encode('utf-8', 'replace').decode()}",
        ]


def _quoted(text: str) -> str:
    return json.dumps(text) if text else ""
