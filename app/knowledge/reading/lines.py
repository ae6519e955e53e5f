"""Converts positioned lines of pages to paragraphs and headings."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from app.knowledge.reading.document import Block

# Ratios to the height of a line, unless noted otherwise.
_LARGER = 1.15  # minimum height of headings, relative to body text
_SAME = 0.08  # maximum difference of heights that count as equal
_GAP = 1.3  # minimum line distance between paragraphs, relative to that within paragraphs
_INDENT = 0.8

_LONGEST_HEADING = 200  # characters
_MOST_HEADINGS = 0.3  # share of all characters; with more large text, size does not identify headings
_MARGIN_LINES = 2  # at the top and at the bottom of a page, checked for repetition
_FEWEST_PAGES = 3
_SHIFT = 4.0  # points; tolerance for the position of a repeated line
_MOST_NUMBERS = 5  # numbers per line that are checked as page numbers
_Place = tuple[str, "int | None", int]  # text, number in it minus the page's index, vertical position
_DIGITS = re.compile(r"\d+")
_BULLET = re.compile(r"(?:[•◦▪‣·●○■□–—*-]|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s")
_SENTENCE_END = re.compile(r"""[.!?:;…。！？]["'”’»)\]」』）]*$""")
_COMPOUND = re.compile(r"\w+-\w+")
_LAST_WORD, _FIRST_WORD = re.compile(r"\w+$"), re.compile(r"^\w+")


@dataclass(slots=True)
class Line:
    """A line of text on a page. Positions are in points from the page's lower left corner.

    Attributes:
        text: Text without a hyphen at its end.
        is_divided: Whether the line ends with a hyphen, so its last word may continue on the next line.
    """

    text: str
    is_divided: bool
    left: float
    right: float
    bottom: float
    height: float

    @property
    def whole(self) -> str:
        """The text with its hyphen."""
        return f"{self.text}-" if self.is_divided else self.text


def blocks(pages: Sequence[Sequence[Line]]) -> list[Block]:
    """Paragraphs and headings of pages, without running headers and footers."""
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
    """Remove lines at the same position of at least half of the pages.

    Equal lines are removed, except the first, which may be the title. Different lines are removed if they
    differ only in a number that increases with the pages. Lines that differ in other numbers may be content.
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
    if len(page) <= 2 * _MARGIN_LINES:  # such as a slide: all its lines would be margin lines
        return {}
    by_place = sorted(page, key=lambda line: line.bottom)
    return {id(line): line for line in by_place[:_MARGIN_LINES] + by_place[-_MARGIN_LINES:]}


def _places(line: Line, page: int) -> list[_Place]:
    """Keys for repeated lines: the text, and the text around each possible page number."""
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
    """Return a function for a paragraph's heading level, determined by the height of its letters."""
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
    """Usual line distance within paragraphs, as a multiple of line height."""
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
    if distance < -0.5:  # upwards, to the next column, where the paragraph may continue
        return not above.is_divided and (bool(_SENTENCE_END.search(above.text)) or not line.text[0].islower())
    is_indented = len(group) > 1 and line.left - above.left > _INDENT * line.height
    ends = bool(_SENTENCE_END.search(above.text))
    return distance > pitch * _GAP or bool(_BULLET.match(line.text)) or (is_indented and ends)


def _joined(group: Sequence[Line], compounds: set[str], edge: float) -> str:
    """Text of a paragraph. Joins divided words, and keeps line breaks after short lines."""
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
    """Whether the hyphen between two lines divides a word, and does not belong to a compound."""
    last, first = _LAST_WORD.search(above), _FIRST_WORD.search(below)
    if not last or not first or not below[0].islower() or not last[0][-1].isalpha():
        return False
    return f"{last[0]}-{first[0]}".lower() not in compounds
