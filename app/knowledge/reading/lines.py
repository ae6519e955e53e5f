"""From lines with their places on pages to paragraphs and headings."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from app.knowledge.reading.document import Block

# Ratios of a line's height, where nothing else is said.
_LARGER = 1.15  # letters of a heading, against those of most text
_SAME = 0.08  # difference of letters that count as of one size
_GAP = 1.3  # distance of lines between paragraphs, against that within them
_INDENT = 0.8

_LONGEST_HEADING = 200  # characters
_MOST_HEADINGS = 0.3  # of all characters; a document of larger letters than that has no headings by size
_MARGIN_LINES = 2  # at the top and at the bottom of a page, that may be repeated
_FEWEST_PAGES = 3
_SHIFT = 4.0  # points; how far a repeated line may be off
_MOST_NUMBERS = 5  # in a line, that may be the page's
_Place = tuple[str, "int | None", int]  # text, the page's number there less the page, height on the page
_DIGITS = re.compile(r"\d+")
_BULLET = re.compile(r"(?:[•◦▪‣·●○■□–—*-]|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s")
_SENTENCE_END = re.compile(r"""[.!?:;…。！？]["'”’»)\]」』）]*$""")
_COMPOUND = re.compile(r"\w+-\w+")
_LAST_WORD, _FIRST_WORD = re.compile(r"\w+$"), re.compile(r"^\w+")


@dataclass(slots=True)
class Line:
    """A line of text on a page; lengths in points, from the page's lower left corner.

    Attributes:
        text: Without a hyphen at its end.
        is_divided: Whether it had one: its last word may go on in the next line.
    """

    text: str
    is_divided: bool
    left: float
    right: float
    bottom: float
    height: float

    @property
    def whole(self) -> str:
        """The text as it is on the page."""
        return f"{self.text}-" if self.is_divided else self.text


def blocks(pages: Sequence[Sequence[Line]]) -> list[Block]:
    """The paragraphs and headings of a document's pages, without running headers and footers."""
    kept = _without_margins(pages)
    lines = [line for page in kept for line in page]
    level_of = _heading_levels(lines)
    compounds = {compound.lower() for line in lines for compound in _COMPOUND.findall(line.text)}
    pitch = _usual_pitch(kept)
    found: list[Block] = []
    for number, page in enumerate(kept, 1):
        edge = max((line.right for line in page), default=0.0)
        for group in _paragraphs(page, pitch):
            level = level_of(group)
            text = _joined(group, compounds, edge)
            found.append(Block(" ".join(text.split()) if level else text, level, number))
    return found


def _without_margins(pages: Sequence[Sequence[Line]]) -> list[list[Line]]:
    """The pages without lines that are on at least half of them, at the same place.

    These are equal, and then the first stays: it may be the title, and is in the document then. Or they
    differ in a number that grows with the pages. Other numbers may be all that such a line is there for.
    """
    margins = [_margin_lines(page) for page in pages]
    seen = Counter(
        place
        for number, margin in enumerate(margins)
        for place in {place for line in margin.values() for place in _places(line, number)}
    )
    needed = max(_FEWEST_PAGES, len(pages) / 2)
    kept_texts: set[str] = set()
    kept: list[list[Line]] = []
    for number, (page, margin) in enumerate(zip(pages, margins, strict=True)):
        kept.append([])
        for line in page:
            places = _places(line, number) if id(line) in margin else []
            repeated = [place for place in places if _occurrences(seen, place) >= needed]
            if any(offset is not None for _, offset, _ in repeated) or (
                repeated and line.whole in kept_texts
            ):
                continue
            kept_texts.update([line.whole] if repeated else ())
            kept[-1].append(line)
    return kept


def _margin_lines(page: Sequence[Line]) -> dict[int, Line]:
    if len(page) <= 2 * _MARGIN_LINES:  # a slide: all of it would be margin
        return {}
    by_place = sorted(page, key=lambda line: line.bottom)
    return {id(line): line for line in by_place[:_MARGIN_LINES] + by_place[-_MARGIN_LINES:]}


def _places(line: Line, page: int) -> list[_Place]:
    """What is the same on other pages for a running line: itself, or what stands around the page's number."""
    text, bottom = line.whole, round(line.bottom / _SHIFT)
    numbers = [number for number in _DIGITS.finditer(text) if len(number[0]) < 7]
    return [(text, None, bottom)] + [
        (f"{text[: number.start()]}#{text[number.end() :]}", int(number[0]) - page, bottom)
        for number in numbers[:_MOST_NUMBERS]
    ]


def _occurrences(seen: Counter[_Place], place: _Place) -> int:
    text, offset, bottom = place
    return sum(seen[text, offset, bottom + shift] for shift in (-1, 0, 1))


def _heading_levels(lines: Sequence[Line]) -> Callable[[Sequence[Line]], int]:
    """A function that tells a paragraph's level by the size of its letters."""
    sizes: Counter[float] = Counter()
    for line in lines:
        sizes[round(line.height, 1)] += len(line.text)
    body = sizes.most_common(1)[0][0] if sizes else 1.0
    larger = sorted((size for size in sizes if size > body * _LARGER), reverse=True)
    ranks: dict[float, int] = {}
    last = 0.0
    for size in larger:
        if not last or size < last * (1 - _SAME):
            last = size
            rank = len(set(ranks.values())) + 1
        ranks[size] = min(rank, 6)
    if sum(sizes[size] for size in larger) > sum(sizes.values()) * _MOST_HEADINGS:
        ranks = {}

    def level(group: Sequence[Line]) -> int:
        length = sum(len(line.text) for line in group)
        has_words = any(len(word) > 1 for line in group for word in re.findall(r"[^\W_]+", line.text))
        if length > _LONGEST_HEADING or not has_words:
            return 0
        return ranks.get(round(group[0].height, 1), 0)

    return level


def _usual_pitch(pages: Sequence[Sequence[Line]]) -> float:
    """The distance of neighbouring lines within paragraphs, as a multiple of their height."""
    ratios = [
        ratio
        for page in pages
        for above, below in pairwise(page)
        if abs(above.height - below.height) < above.height * _SAME
        and 0.7 < (ratio := (above.bottom - below.bottom) / above.height) < 3
    ]
    return statistics.quantiles(ratios, n=4)[0] if len(ratios) > 1 else 1.2


def _paragraphs(page: Sequence[Line], pitch: float) -> list[list[Line]]:
    groups: list[list[Line]] = []
    for line in page:
        if groups and not _begins_paragraph(groups[-1], line, pitch):
            groups[-1].append(line)
        else:
            groups.append([line])
    return groups


def _begins_paragraph(group: Sequence[Line], line: Line, pitch: float) -> bool:
    above = group[-1]
    if abs(line.height - above.height) > above.height * _SAME:
        return True
    distance = (above.bottom - line.bottom) / above.height
    if distance < -0.5:  # up, to the next column: the paragraph may go on there
        return not above.is_divided and (bool(_SENTENCE_END.search(above.text)) or not line.text[0].islower())
    is_indented = len(group) > 1 and line.left - above.left > _INDENT * line.height
    ends = bool(_SENTENCE_END.search(above.text))
    return distance > pitch * _GAP or bool(_BULLET.match(line.text)) or (is_indented and ends)


def _joined(group: Sequence[Line], compounds: set[str], edge: float) -> str:
    """The text of a paragraph: words divided at a line's end in one, lines that end early as they are."""
    parts: list[str] = []
    for above, line in pairwise(group):
        parts.append(above.text)
        if above.is_divided:
            parts.append("" if _is_one_word(above.text, line.text, compounds) else "-")
        else:
            first_word = len(line.text.split(" ", 1)[0]) + 1
            room = edge - above.right
            per_character = (above.right - above.left) / max(len(above.text), 1)
            parts.append("\n" if room > first_word * per_character * 1.2 else " ")
    return "".join([*parts, group[-1].whole])


def _is_one_word(above: str, below: str, compounds: set[str]) -> bool:
    """Whether the hyphen between two lines only divides a word: it is part of a compound otherwise."""
    last, first = _LAST_WORD.search(above), _FIRST_WORD.search(below)
    if not last or not first or not below[0].islower() or not last[0][-1].isalpha():
        return False
    return f"{last[0]}-{first[0]}".lower() not in compounds
