"""Splits documents into chunks within a token budget: by structure, then by size.

Headings divide a document into sections. A section within the budget is one chunk. Tiny neighbours share a
chunk. A larger section is split between paragraphs, else sentences, else words, else characters.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from app.knowledge.chunk import Chunk
from app.knowledge.reading.document import Block, Document
from app.knowledge.sentences import sentences

_MOST_UNITS = 2000  # sentences per section; a longer one is divided, because a section is split as a whole
_TINY = 4  # sections up to 1/4 of the budget may share a chunk
_HEADINGS = 2  # headings take at most 1/2 of the budget
# The embedding model's tokenizer may map unknown text of any length to one token. The language model's does
# not. So one token counts for at most this many characters.
_MOST_CHARACTERS_PER_TOKEN = 16
_CHARACTERS_PER_TOKEN = 4  # initial estimate
_SHORT = 24  # characters; shorter sentences join the next one, because each call of the tokenizer takes time
_LONGEST_CLUSTER = 16  # code points that are not separated, such as an emoji
_JOINERS = "\u200d\ufe0e\ufe0f"


def embedded_text(chunk: Chunk) -> str:
    """The text of a chunk for the embedding model, limited by the token budget."""
    return _with_heading(chunk.heading, chunk.text)


def split_into_chunks(
    document: Document, *, file: str, n_tokens: Callable[[str], int], max_tokens: int, overlap: int
) -> Iterator[Chunk]:
    """Split a document into chunks that together contain all its words in order.

    The work is done as the chunks are taken, so a large document does not hold up other threads.

    Args:
        document: The document.
        file: Its name, for the chunks.
        n_tokens: Counts the tokens of a text, including special ones.
        max_tokens: Maximum tokens per chunk, including the heading. Only a single character can exceed it.
        overlap: Maximum tokens of whole sentences repeated from the previous chunk of the section.

    Raises:
        ValueError: ``max_tokens`` leaves no room for text, or ``overlap`` is not below that room.
    """
    cutter = _Cutter(n_tokens, max_tokens, overlap)
    sections = _merged(_sections(document.blocks, cutter), cutter)
    parts = (part for section in sections for part in cutter.cut(section))
    for position, (heading, units) in enumerate(parts):
        text = "".join(unit.text for unit in units).strip()
        page = next((unit.page for unit in units if unit.text.strip()), None)
        yield Chunk(file=file, position=position, heading=heading, page=page, text=text)


def _with_heading(heading: str, text: str) -> str:
    return f"{heading}\n{text}" if heading else text


@dataclass(frozen=True, slots=True)
class _Unit:
    """A text that is not split further. Joined units are the text of a section."""

    text: str
    cost: int
    page: int | None
    begins_block: bool = False
    is_whole: bool = True  # a whole sentence or line, not a part


@dataclass(frozen=True, slots=True)
class _Heading:
    block: Block
    number: int  # distinguishes headings of the same text


@dataclass(slots=True)
class _Section:
    """A heading and the text up to the next heading, or several such sections below one path."""

    path: tuple[_Heading, ...]
    units: list[_Unit] = field(default_factory=list)
    n_merged: int = 1

    @property
    def cost(self) -> int:
        return sum(unit.cost for unit in self.units)


class _Cutter:
    """Counts tokens and fills chunks."""

    def __init__(self, n_tokens: Callable[[str], int], max_tokens: int, overlap: int) -> None:
        self._n_tokens = n_tokens
        self._special = n_tokens("")
        self.room = max_tokens - self._special
        if self.room < 1:
            raise ValueError(
                f"chunks of {max_tokens} tokens have no room for text: {self._special} are special"
            )
        if not 0 <= overlap < self.room:
            raise ValueError(f"an overlap of {overlap} tokens is not within 0 to {self.room - 1}")
        self._overlap = overlap
        self._used: set[int] = set()  # numbers of headings that are already in a chunk

    def cost(self, text: str) -> int:
        """Tokens of a text within a chunk, without special tokens."""
        return max(self._n_tokens(text) - self._special, len(text) // _MOST_CHARACTERS_PER_TOKEN, 1)

    def heading(self, path: Sequence[_Heading]) -> tuple[str, int]:
        """The heading line of a chunk, and the number of outermost headings that do not fit."""
        names = [heading.block.text for heading in path]
        while names and self.cost(" › ".join(names) + "\n") > self.room // _HEADINGS:
            names.pop(0)
        return " › ".join(names), len(path) - len(names)

    def room_below(self, heading: str) -> int:
        """Tokens left for text in a chunk with this heading."""
        return self.room - (self.cost(heading + "\n") if heading else 0)

    def units(self, block: Block, room: int) -> Iterator[_Unit]:
        """The sentences of a block. Sentences larger than ``room`` are split."""
        begins = True
        for sentence in _joined(sentences(block.text + "\n\n"), min(_SHORT, room // 8)):
            cost = self.cost(sentence)
            pieces: Iterable[_Unit] = (_Unit(sentence, cost, block.page),)
            if cost > room:
                pieces = self._pieces(sentence, block.page, room)
            for piece in pieces:
                yield _Unit(piece.text, piece.cost, piece.page, begins, piece.is_whole)
                begins = False

    def cut(self, section: _Section) -> Iterator[tuple[str, list[_Unit]]]:
        """Heading and units of each chunk of a section."""
        heading, units = self._titled(section)
        room = self.room_below(heading)
        begin = carried = 0  # units before `begin` are in a chunk; units from `carried` on are repeated
        while begin < len(units):
            end = self._fill(units, carried, begin, room)
            while not (fits := self._fits(heading, units[carried:end])) and end - carried > 1:
                if carried < begin:
                    carried += 1
                else:
                    end = begin + max(1, (end - begin) * 9 // 10)
            if not fits and len(halves := self._halves(units[begin])) > 1:
                units[begin : begin + 1] = halves
                continue
            if any(unit.text.strip() for unit in units[begin:end]):
                yield heading, units[carried:end]
            carried, begin = self._carry(units, begin, end), end

    def _titled(self, section: _Section) -> tuple[str, list[_Unit]]:
        """The heading of all chunks of a section, and its units. Headings that do not fit become text."""
        path = section.path if section.units else section.path[:-1]
        heading, n_left = self.heading(path)
        left = [outer for outer in path[:n_left] if outer.number not in self._used]
        if not section.units:
            left.append(section.path[-1])
        self._used.update(outer.number for outer in section.path)
        room = self.room_below(heading)
        return heading, [unit for outer in left for unit in self.units(outer.block, room)] + section.units

    def _fill(self, units: Sequence[_Unit], carried: int, begin: int, room: int) -> int:
        """End of the chunk that begins with the carried units, at a paragraph's end if possible."""
        spent = sum(unit.cost for unit in units[carried:begin])
        end = begin
        while end < len(units) and (end == begin or spent + units[end].cost <= room):
            spent += units[end].cost
            end += 1
        if end == len(units) or units[end].begins_block:
            return end
        best = next((index for index in range(end - 1, begin, -1) if units[index].begins_block), begin)
        behind = sum(unit.cost for unit in units[best:end])
        return best if best > begin and spent - behind >= room / 2 else end

    def _fits(self, heading: str, units: Sequence[_Unit]) -> bool:
        text = _with_heading(heading, "".join(unit.text for unit in units).strip())
        return self.cost(text) <= self.room

    def _carry(self, units: Sequence[_Unit], begin: int, end: int) -> int:
        """Index of the first sentence that the next chunk repeats."""
        spent, first = 0, end
        while first - 1 > begin and units[first - 1].is_whole:
            spent += units[first - 1].cost
            if spent > self._overlap:
                break
            first -= 1
        return first

    def _pieces(self, text: str, page: int | None, room: int) -> Iterator[_Unit]:
        """Split a sentence into parts of at most ``room`` tokens. Each part is tokenized about once."""
        begin, width = 0, room * _CHARACTERS_PER_TOKEN
        while begin < len(text):
            end, is_line = _cut_before(text, begin, begin + width)
            length, cost = end - begin, self.cost(text[begin:end])
            fitting = int(length * room / cost * 0.9)
            if cost > room and width > 1:
                width = max(1, min(width - 1, length - 1, fitting))
                continue
            yield _Unit(text[begin:end], cost, page, is_whole=is_line)
            width = max(1, min(width * 2, fitting))
            begin = end

    def _halves(self, unit: _Unit) -> list[_Unit]:
        """Halve a unit: some tokenizers need more tokens for a whole than for its parts."""
        content = unit.text.strip()
        if len(content) < 2:
            return [unit]
        middle = unit.text.index(content[0]) + len(content) // 2
        end, _ = _cut_before(unit.text, 0, middle)
        if not (unit.text[:end].strip() and unit.text[end:].strip()):
            end = middle
        first, second = unit.text[:end], unit.text[end:]
        return [
            _Unit(first, self.cost(first), unit.page, unit.begins_block, False),
            _Unit(second, self.cost(second), unit.page, False, False),
        ]


def _cut_before(text: str, begin: int, latest: int) -> tuple[int, bool]:
    """Find a position to split before ``latest``: at a line break, else a space, else any character.

    The flag is True at a line break or the end of the text.
    """
    latest = max(latest, begin + 1)
    if latest >= len(text):
        return len(text), True
    if (line := text.rfind("\n", begin, latest)) > begin:
        return line + 1, True
    for index in range(latest, begin + 1, -1):
        if text[index - 1].isspace():
            return index, False
    end = latest
    while end < len(text) and end < latest + _LONGEST_CLUSTER and _continues(text, end):
        end += 1
    return end, False


def _continues(text: str, index: int) -> bool:
    character = text[index]
    return unicodedata.combining(character) > 0 or character in _JOINERS or text[index - 1] == "\u200d"


def _joined(texts: Iterable[str], least: int) -> Iterator[str]:
    """Join each text shorter than ``least`` characters with its successors."""
    joined = ""
    for text in texts:
        joined += text
        if len(joined) >= least:
            yield joined
            joined = ""
    if joined:
        yield joined


def _sections(blocks: Sequence[Block], cutter: _Cutter) -> Iterator[_Section]:
    section, room = _Section(()), cutter.room
    for number, block in enumerate(blocks):
        if not block.level:
            for unit in cutter.units(block, room):
                if len(section.units) == _MOST_UNITS:
                    yield section
                    section = _Section(section.path)
                section.units.append(unit)
            continue
        if section.units or section.path:
            yield section
        above = tuple(heading for heading in section.path if heading.block.level < block.level)
        section = _Section((*above, _Heading(block, number)))
        room = cutter.room_below(cutter.heading(section.path)[0])
    if section.units or section.path:
        yield section


def _merged(sections: Iterable[_Section], cutter: _Cutter) -> Iterator[_Section]:
    """Merge tiny neighbouring sections below one heading, and headings without text with the next section."""
    last: _Section | None = None
    empty: list[_Section] = []
    for section in sections:
        if not section.units:
            # A heading above this one is part of its path.
            if empty and section.path[:-1] == empty[-1].path:
                empty.pop()
            empty.append(section)
            continue
        alone = [each for each in empty if section.path[: len(each.path) - 1] != each.path[:-1]]
        leading = [
            each for each in empty if each not in alone and section.path[: len(each.path)] != each.path
        ]
        empty = []
        section.units[:0] = [unit for each in leading for unit in _own_heading(each, cutter)]
        together = _together(last, section, cutter) if last and not alone else None
        if last and not together:
            yield last
        yield from alone
        last = together or section
    if last:
        yield last
    yield from empty


def _together(last: _Section, section: _Section, cutter: _Cutter) -> _Section | None:
    """Merge two sections if they are tiny and the second is below or beside the first; else None."""
    is_below = last.n_merged > 1 or section.path[:-1] == last.path
    base = last.path if is_below else last.path[:-1]
    tiny = cutter.room // _TINY
    if section.path[:-1] != base or section.cost > tiny or (last.n_merged == 1 and last.cost > tiny):
        return None
    units = [*(last.units if is_below else [*_own_heading(last, cutter), *last.units])]
    units += [*_own_heading(section, cutter), *section.units]
    merged = _Section(base, units, last.n_merged + 1)
    return merged if merged.cost <= cutter.room_below(cutter.heading(base)[0]) else None


def _own_heading(section: _Section, cutter: _Cutter) -> Iterator[_Unit]:
    """The heading of a section as the first paragraph of its text."""
    if section.path:
        room = cutter.room_below(cutter.heading(section.path[:-1])[0])
        yield from cutter.units(section.path[-1].block, room)
