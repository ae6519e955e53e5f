"""How a model writes its calls of functions: as JSON, with something before, between and after."""

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
    """The text of an assistant's calls: ``begin``, the calls with ``separator`` between them, ``end``.

    Each call is a JSON object: ``head``, the function's name, ``middle``, the arguments, ``tail``.

    Attributes:
        begin: Before the first call, such as ``<tool_call>`` and a line break; may be empty.
        head: From a call's brace up to its name.
        middle: From the name to the arguments' brace.
        tail: From behind the arguments to the call's closing brace.
        end: Behind the last call.
        separator: Between two calls; None where an answer has one call at most.
        name_key: The key of the name in the call.
        arguments_key: The key of the arguments in the call.
        id_text: What surrounds the id that a call may have between its arguments and ``tail``.
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
        """What tells that calls follow; empty where an answer that is a call begins with its JSON."""
        return re.sub(r"\s*\[?\s*\Z", "", self.begin).lstrip()

    @property
    def closing(self) -> str:
        """What tells that the calls end; empty where nothing does."""
        return re.sub(r"\A\s*\]?\s*", "", self.end).rstrip()

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        """The text of calls, each a function's name and the JSON text of its arguments."""
        written = [self.head + name + self.middle + arguments + self.tail for name, arguments in calls]
        return self.begin + ("\n" if self.separator is None else self.separator).join(written) + self.end

    def markers(self, special: Collection[str]) -> frozenset[str]:
        """The special tokens with which the model writes calls.

        They have to be rendered for the calls to be found in its answer.

        Args:
            special: The texts of the vocabulary's special tokens.
        """
        written = "\0".join([self.begin, self.head, self.middle, self.tail, self.end, self.separator or ""])
        return frozenset(special_pattern(special).findall(written))


def special_pattern(special: Collection[str]) -> re.Pattern[str]:
    """Finds special tokens' texts as a tokenizer does: of several at one place the longest."""
    longest_first = sorted(filter(None, special), key=len, reverse=True)
    # (?!) matches nowhere: a vocabulary may have no special tokens.
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


# The format of the Hermes models, which many others were trained on too.
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
    """Read a template's format from what it writes.

    Args:
        calls: Two calls.
        content: A text.
        prompt: What the template writes of a question, with the beginning of the assistant's turn.
        plain: What it writes of the question and ``content`` for an answer.
        one: The same with the first call for an answer.
        two: The same with both calls; None where the template refuses that.

    Returns:
        None where the calls are not written as JSON objects with a name and arguments.
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
    """Where the answer begins in ``one``."""
    differ = (at for at, (a, b) in enumerate(zip(plain, one, strict=False)) if a != b)
    n_common = next(differ, min(len(plain), len(one)))
    if plain[n_common:].lstrip().startswith(content):
        return n_common
    # What both have in common goes on into the markup that tells them apart.
    if plain.startswith(prompt) and one.startswith(prompt):
        return len(prompt)
    return len(_BEGUN_MARKUP.sub("", one[:n_common]))


@dataclass(frozen=True, slots=True)
class _Found:
    begin: int
    end: int
    format: ToolFormat  # of the one call


def _find_call(text: str, begin: int, call: ToolCall) -> _Found | None:
    """The JSON object of a call at or behind ``begin``."""
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
            return None  # the arguments stand first, or are no object, or an id comes before them
        tail, id_text = text[arguments[1] : end], None
        if call.id in tail:
            before, _, after = tail.partition(call.id)
            tail, id_text = after.removeprefix('"'), (before, '"')
        head, middle = text[at:name_at], text[name_end : arguments[0]]
        return _Found(at, end, ToolFormat("", head, middle, tail, "", None, *keys, id_text))
    return None


def _keys_of_call(text: str, at: int, call: ToolCall) -> tuple[tuple[str, str] | None, int]:
    """The keys of name and arguments in the object at ``at``, if it is the call's, and where it ends."""
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
    """What stands between two calls, if all else is as with one."""
    first = _find_call(turn, 0, calls[0])
    second = _find_call(turn, first.end, calls[1]) if first else None
    if first is None or second is None or first.format != second.format:
        return None
    separator = turn[first.end : second.begin]
    around = replace(first.format, begin=turn[: first.begin].lstrip(), end=format_.end)
    end = turn[second.end :].removesuffix(end_of_turn).rstrip()
    return separator if around == format_ and end == format_.end else None
