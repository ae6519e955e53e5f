"""The grammar of an answer that may, or has to, call functions, in llguidance's dialect of Lark.

Syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from app.chat.messages import Tool
from app.chat.tools.format import ToolFormat, special_pattern

# Compact JSON costs the fewest tokens, and a model cannot lose itself in white space.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# A string that is not ended yet, a whole one, or another character that is no white space.
_JSON_TOKENS = re.compile(r'"[^"]*"|\S')
_SPACE = "[ \\t\\n]{0,8}"
# Llama's models write this too, whatever their template shows them.
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
    """The grammar of answers whose calls have arguments that the parameters' schemas validate.

    It is not compiled: whether llguidance can keep to the schemas shows when it is.

    Args:
        format_: How the model writes calls.
        tools: The functions, at least one.
        choice: ``required`` is a call of any function, a function's name a call of that one, and ``auto``
            a text, which turns into calls where the format's marker stands in it.
        parallel: Whether one answer may have several calls, if the format has.
        special_tokens: Text to id of the vocabulary's control tokens. Where one of these texts stands in
            the format it is that token.

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
    """Writes the rules for one format."""

    def __init__(self, format_: ToolFormat, special_tokens: Mapping[str, int]) -> None:
        self._format = format_
        self._special_tokens = special_tokens
        self._special = special_pattern(special_tokens.keys())

    def literal(self, text: str) -> str:
        """A text, in which special tokens are those tokens."""
        parts: list[str] = []
        end = 0
        for match in self._special.finditer(text):
            parts += [_quoted(text[end : match.start()]), f"<[{self._special_tokens[match[0]]}]>"]
            end = match.end()
        return " ".join(filter(None, [*parts, _quoted(text[end:])]))

    def auto(self, rest: str) -> list[str]:
        """Rules of a text that may turn into calls; ``rest`` is what follows the first of them."""
        begin, marker = self._format.begin, self._format.marker
        special = self._special.search(begin)
        if special:  # no text holds a control token: nothing has to be told apart
            return [f"start: TEXT | TEXT? {self.literal(begin[special.start() :])} call {rest}", _ANY_TEXT]
        if marker:
            return [
                f"start: TEXT | marked {self.literal(begin[len(marker) :])} call {rest}",
                f"marked[lazy]: TEXT {_quoted(marker)}",
                _ANY_TEXT,
            ]
        # An answer is a call if it begins as one, whatever white space the model puts there.
        opening = _SPACE + _SPACE.join(map(re.escape, _JSON_TOKENS.findall(begin + self._format.head)))
        opening = opening.replace("\\{", f"\\{{{_TYPE}", 1)
        return [
            f"start: TEXT | OPENING named {rest}",
            f"OPENING: /{opening}/",
            f"TEXT: /(?s:.*)/ & ~/{opening}(?s:.*)/",
        ]

    def named(self, number: int, tool: Tool) -> list[str]:
        """Rules of a call from its name on."""
        format_ = self._format
        id_ = ""
        if format_.id_text:
            before, after = map(self.literal, format_.id_text)
            id_ = f"({before} /[A-Za-z0-9]{{9}}/ {after})?"
        # A document of its own, not a part of the call's: references in it are to its own parts.
        schema = json.dumps({**tool.schema, "x-guidance": _JSON_STYLE}, ensure_ascii=False)
        name = f"{_quoted(tool.name)} {self.literal(format_.middle)}"
        return [
            f"named_{number}: {name} arguments_{number} {id_} {self.literal(format_.tail)}",
            f"arguments_{number}: %json {schema.encode('utf-8', 'replace').decode()}",
        ]


def _quoted(text: str) -> str:
    return json.dumps(text) if text else ""
