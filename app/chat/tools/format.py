"""Text format of a model's tool calls: JSON objects with text before, between and after them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from app.chat.messages import ToolCall

_DECODER = json.JSONDecoder()
_BEGUN_MARKUP = re.compile(r"[<\[][^<>\[\]\s]*\Z")
_BRACE = re.compile(r"\{")


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """Format of calls: ``begin``, the calls separated by ``separator``, ``end``.

    Each call is a JSON object: ``head``, the function's name, ``middle``, the arguments, ``tail``.

    Attributes:
        begin: Text before the first call, such as ``<tool_call>`` and a line break. May be empty.
        head: From the call's opening brace to the name.
        middle: From the name to the arguments' opening brace.
        tail: From the end of the arguments to the call's closing brace.
        end: Text after the last call.
        separator: Text between two calls; None if an answer can have only one call.
        name_key: JSON key of the name.
        arguments_key: JSON key of the arguments.
        id_text: Text before and after an optional id, between the arguments and ``tail``.
    """

    begin: str
    head: str
    middle: str
    tail: str
    end: str
    separator: str | None
    name_key: str
    arguments_key: str
    id_text: tuple[str, str] | None = None

    @property
    def marker(self) -> str:
        """Text that announces calls; empty if calls begin with their JSON."""
        return re.sub(r"\s*\[?\s*\Z", "", self.begin).lstrip()

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        """The text of calls.

        Args:
            calls: Name and JSON text of the arguments of each call.
        """
        written = [self.head + name + self.middle + arguments + self.tail for name, arguments in calls]
        return self.begin + ("\n" if self.separator is None else self.separator).join(written) + self.end

    def markers(self, special: Collection[str]) -> frozenset[str]:
        """Special tokens in the format. The parser needs their text in the answer.

        Args:
            special: Texts of the vocabulary's special tokens.
        """
        written = "\0".join([self.begin, self.head, self.middle, self.tail, self.end, self.separator or ""])
        return frozenset(special_pattern(special).findall(written))


def special_pattern(special: Collection[str]) -> re.Pattern[str]:
    """A pattern of special tokens' texts. It matches the longest one at a position, as tokenizers do."""
    longest_first = sorted(filter(None, special), key=len, reverse=True)
    # (?!) matches nowhere: a vocabulary may have no special tokens.
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


# The format of the Hermes models. Many other models are trained on it.
HERMES = ToolFormat(
    begin="<tool_call>\n",
    head='{"name": "',
    middle='", "arguments": ',
    tail="}",
    end="\n</tool_call>",
    separator="\n</tool_call>\n<tool_call>\n",
    name_key="name",
    arguments_key="arguments",
)


def learn_format(
    calls: tuple[ToolCall, ToolCall], content: str, *, prompt: str, plain: str, one: str, two: str | None
) -> ToolFormat | None:
    """Derive a template's format from its renderings.

    Args:
        calls: Two calls.
        content: Text of an answer.
        prompt: Rendering of a question, with the start of the assistant's turn.
        plain: Rendering of the question and the answer ``content``.
        one: Rendering of the question and the first call.
        two: Rendering of the question and both calls; None if the template rejects it.

    Returns:
        None if calls are not rendered as JSON objects with a name and arguments.
    """
    plain, one, two = plain.rstrip(), one.rstrip(), two.rstrip() if two else None
    begin = _begin(prompt, plain, one, content)
    end_of_turn = plain[plain.rfind(content) + len(content) :].strip()
    found = _find_call(one, begin, calls[0])
    if found is None or not one.endswith(end_of_turn) or found.end > len(one) - len(end_of_turn):
        return None
    end = one[found.end : len(one) - len(end_of_turn)].rstrip()
    format_ = replace(found.format, begin=one[begin : found.begin].lstrip(), end=end)
    return replace(format_, separator=_separator(two[begin:], calls, format_, end_of_turn) if two else None)


def _begin(prompt: str, plain: str, one: str, content: str) -> int:
    """Position of the answer in ``one``."""
    differ = (at for at, (a, b) in enumerate(zip(plain, one, strict=False)) if a != b)
    n_common = next(differ, min(len(plain), len(one)))
    if plain[n_common:].lstrip().startswith(content):
        return n_common
    # The common prefix includes the start of the markup in which they differ.
    if plain.startswith(prompt) and one.startswith(prompt):
        return len(prompt)
    return len(_BEGUN_MARKUP.sub("", one[:n_common]))


@dataclass(frozen=True, slots=True)
class _Found:
    begin: int
    end: int
    format: ToolFormat  # without begin, end and separator


def _find_call(text: str, begin: int, call: ToolCall) -> _Found | None:
    """Find the JSON object of a call, from ``begin``."""
    name_at = text.find(f'"{call.name}"', begin) + 1
    if name_at < 1:
        return None
    name_end = name_at + len(call.name)
    for at in (match.start() for match in _BRACE.finditer(text, begin, name_at)):
        keys, end = _keys_of_call(text, at, call)
        if keys is None:
            continue
        arguments = _find_arguments(text, name_end, end, call)
        if arguments is None or call.id in text[at : arguments[0]]:
            # Arguments before the name, arguments that are not an object, or an id before the arguments.
            return None
        tail, id_text = text[arguments[1] : end], None
        if call.id in tail:
            before, _, after = tail.partition(call.id)
            tail, id_text = after.removeprefix('"'), (before, '"')
        head, middle = text[at:name_at], text[name_end : arguments[0]]
        return _Found(at, end, ToolFormat("", head, middle, tail, "", None, *keys, id_text))
    return None


def _keys_of_call(text: str, at: int, call: ToolCall) -> tuple[tuple[str, str] | None, int]:
    """Keys of name and arguments in the object at ``at`` (None: it is not the call), and its end."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except ValueError:
        return None, at
    names = [key for key, inner in value.items() if inner == call.name]
    arguments = [key for key, inner in value.items() if inner == call.by_name]
    return ((names[0], arguments[0]) if names and arguments else None), end


def _find_arguments(text: str, begin: int, end: int, call: ToolCall) -> tuple[int, int] | None:
    for match in _BRACE.finditer(text, begin, end):
        value, arguments_end = _DECODER.raw_decode(text, match.start())
        if value == call.by_name:
            return match.start(), arguments_end
    return None


def _separator(
    turn: str, calls: tuple[ToolCall, ToolCall], format_: ToolFormat, end_of_turn: str
) -> str | None:
    """Text between two calls; None if the remaining text differs from the rendering of one call."""
    first = _find_call(turn, 0, calls[0])
    second = _find_call(turn, first.end, calls[1]) if first else None
    if first is None or second is None or first.format != second.format:
        return None
    separator = turn[first.end : second.begin]
    around = replace(first.format, begin=turn[: first.begin].lstrip(), end=format_.end)
    end = turn[second.end :].removesuffix(end_of_turn).rstrip()
    return separator if around == format_ and end == format_.end else None
