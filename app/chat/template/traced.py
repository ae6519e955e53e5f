"""Traces the characters of message contents through a template.

Every character of a content is replaced by a stand-in, a code point of Unicode planes 4 to 16. These have no
letters. The stand-ins in the rendered text mark the contents, and are then replaced by the original
characters. A :class:`TracedText` contains stand-ins, but compares and searches like the original text. In a
template, ``'</think>' in content`` and ``content.split('\\n')`` have the same results as with the content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex

# The stand-in of a character of the basic plane is in plane 4, with the same low 16 bits. Other characters
# are rare; they get stand-ins in planes 5 to 16 in order of appearance.
_BASIC, _OTHERS, _END = 0x40000, 0x50000, 0x110000
_STAND_INS = f"{chr(_BASIC)}-{chr(_END - 1)}"
_STAND_IN = re.compile(f"[{_STAND_INS}]")
_BEYOND_BASIC = re.compile(f"[{chr(0x10000)}-{chr(_END - 1)}]")
_OTHER_STAND_IN = re.compile(f"[{chr(_OTHERS)}-{chr(_END - 1)}]")

# White space gets no stand-ins, because templates trim it. Neither do characters that JSON escapes.
_KEPT = frozenset(c for c in map(chr, range(0x10000)) if c.isspace() or c < " " or c in '"\\')
_CONTENT = re.compile(f"[{_STAND_INS}](?:[{_STAND_INS}{re.escape(''.join(_KEPT))}]*[{_STAND_INS}])?")

# For the third byte of a UTF-32-LE character, which is its plane.
_BASIC_TO_4 = bytes.maketrans(b"\0", b"\4")
_4_TO_BASIC = bytes.maketrans(b"\4", b"\0")


class TooManyCharacters(ValueError):
    """The contents have more distinct characters than there are stand-ins."""


class Tracer:
    """The stand-ins of one rendering."""

    def __init__(self) -> None:
        self._stand_in: dict[str, str] = {}
        self._other: dict[str, str] = {}

    def mark(self, text: str) -> TracedText:
        """Replace the characters of a content by stand-ins.

        Raises:
            TooManyCharacters: No stand-in is left.
        """
        basic = text if text.isascii() else _BEYOND_BASIC.sub(self._new_stand_in, text)
        marked = _change_planes(basic, _BASIC_TO_4)
        for character in _KEPT:
            if character in text:
                marked = marked.replace(chr(_BASIC + ord(character)), character)
        return TracedText(marked, self)

    def _new_stand_in(self, match: re.Match[str]) -> str:
        stand_in = self._stand_in.get(match[0])
        if stand_in is None:
            if _OTHERS + len(self._other) == _END:
                raise TooManyCharacters(f"more than {len(self._other):,} distinct characters")
            stand_in = self._stand_in[match[0]] = chr(_OTHERS + len(self._other))
            self._other[stand_in] = match[0]
        return stand_in

    def plain(self, text: str) -> str:
        """The text with stand-ins replaced by the original characters."""
        if str.isascii(text):
            return str.__str__(text)
        plain = _change_planes(text, _4_TO_BASIC)
        if not self._other:
            return plain
        return _OTHER_STAND_IN.sub(lambda match: self._other.get(match[0], match[0]), plain)

    def escape(self, text: str) -> str:
        """A JSON text with characters beyond ASCII escaped."""

        def escaped(match: re.Match[str]) -> str:
            character = self.plain(match[0])
            if character.isascii():
                return match[0]
            escape = json.dumps(character)[1:-1]
            return self.mark(escape) if _STAND_IN.match(match[0]) else escape

        return re.sub("[^\0-\x7f]", escaped, text)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Begin and end of each span of ``text`` that comes from a content."""
        return [match.span() for match in _CONTENT.finditer(text)]

    def trace(self, value: Any) -> Any:
        """``value``, as a :class:`TracedText` if it is a string with stand-ins."""
        if type(value) is str and not value.isascii() and _STAND_IN.search(value):
            return TracedText(value, self)
        return value


def _change_planes(text: str, planes: bytes) -> str:
    data = bytearray(str.encode(text, "utf-32-le", "surrogatepass"))
    data[2::4] = data[2::4].translate(planes)
    return data.decode("utf-32-le", "surrogatepass")


class TracedText(str):
    """A string with stand-ins whose methods behave as on the original text."""

    _tracer: Tracer
    _plain_text: str | None

    def __new__(cls, text: str, tracer: Tracer) -> TracedText:
        self = super().__new__(cls, text)
        self._tracer, self._plain_text = tracer, None
        return self

    @property
    def _plain(self) -> str:
        if self._plain_text is None:
            self._plain_text = self._tracer.plain(self)
        return self._plain_text

    def _same(self, text: str) -> TracedText:
        return TracedText(text, self._tracer)

    def _cut(self, parts: Iterable[str], between: int) -> list[TracedText]:
        """Spans of this text that correspond to ``parts`` of the plain text, ``between`` characters apart."""
        stretches, at = [], 0
        for part in parts:
            stretches.append(self[at : at + len(part)])
            at += len(part) + between
        return stretches

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        return self._tracer.mark(repr(self._plain))

    def __hash__(self) -> int:
        return hash(self._plain)

    def __getitem__(self, key: SupportsIndex | slice) -> TracedText:
        return self._same(super().__getitem__(key))

    def __iter__(self) -> Iterator[str]:
        return map(self._same, super().__iter__())

    def __radd__(self, other: str) -> TracedText:
        return self._same(str.__add__(other, self))

    def lstrip(self, chars: str | None = None, /) -> TracedText:
        return self[len(self) - len(self._plain.lstrip(_plain(chars))) :]

    def rstrip(self, chars: str | None = None, /) -> TracedText:
        return self[: len(self._plain.rstrip(_plain(chars)))]

    def strip(self, chars: str | None = None, /) -> TracedText:
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> TracedText:
        return self[len(self) - len(self._plain.removeprefix(_plain(prefix))) :]

    def removesuffix(self, suffix: str, /) -> TracedText:
        return self[: len(self._plain.removesuffix(_plain(suffix)))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        if sep is None:  # white space is kept
            return list(map(self._same, super().split(None, maxsplit)))
        return [*self._cut(self._plain.split(_plain(sep), maxsplit), len(sep))]

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        if sep is None:
            return list(map(self._same, super().rsplit(None, maxsplit)))
        return [*self._cut(self._plain.rsplit(_plain(sep), maxsplit), len(sep))]

    def splitlines(self, keepends: bool = False) -> list[str]:
        return list(map(self._same, super().splitlines(keepends)))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._cut(self._plain.partition(_plain(sep)), 0)
        return before, found, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._cut(self._plain.rpartition(_plain(sep)), 0)
        return before, found, after

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> TracedText:
        if not old:
            return self._same(super().replace(old, new, count))
        return self._same(str.join(new, self.split(old, count)))


def _plain(value: Any) -> Any:
    if isinstance(value, TracedText):
        return value._plain
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def _answering(name: str) -> Callable[..., Any]:
    """The method on the plain text, for comparisons and searches."""
    method = getattr(str, name)

    def answer(self: TracedText, *arguments: Any) -> Any:
        return method(self._plain, *map(_plain, arguments))

    return answer


def _marking(name: str) -> Callable[..., Any]:
    """The method on the plain text, with the whole result traced, for changes of characters."""
    method = getattr(str, name)

    def changed(self: TracedText) -> TracedText:
        return self._tracer.mark(method(self._plain))

    return changed


def _keeping(name: str) -> Callable[..., Any]:
    """The method on the text with stand-ins, for additions and moves of characters."""
    method = getattr(str, name)

    def kept(self: TracedText, *arguments: Any) -> Any:
        result = method(self, *arguments)
        return self._same(result) if isinstance(result, str) else result

    return kept


for _kind, _names in (
    (_answering, "__contains__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ startswith endswith"),
    (_answering, "find rfind index rindex count encode isalnum isalpha isascii isdecimal isdigit"),
    (_answering, "isidentifier islower isnumeric isprintable isspace istitle isupper"),
    (_marking, "upper lower title capitalize swapcase casefold"),
    (_keeping, "__add__ __mul__ __rmul__ __mod__ join center ljust rjust zfill expandtabs translate"),
):
    for _name in _names.split():
        setattr(TracedText, _name, _kind(_name))
