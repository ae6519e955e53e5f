"""Sentence boundaries."""

from __future__ import annotations

import re
from collections.abc import Iterator

# The lookbehinds let each run of marks match once, from its first character: linear time.
_CANDIDATE = re.compile(
    r"""(?<![.!?…])[.!?…]+["'”’»)\]]*\s+"""  # scripts with spaces between words
    r"""|(?<![。！？｡])[。！？｡]+["'”’」』）]*\s*"""  # scripts without
    r"|(?<!\s)\s*\n\s*"
)
_ITEM = re.compile(r"(?:[-*+•◦▪‣·●○■□–]|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s")
_NOT_AN_END = re.compile(
    r"(?:^|[\s(])(?:[^\W\d_]|e\.g|i\.e|z\.B|d\.h|u\.a|p\.ex|Dr|Mr|Mrs|Ms|Prof|St|No|Nos|Nr|Fig|Figs|Eq|Sec|Ch|Vol|"
    r"pp|ca|approx|vs|cf|incl|resp|bzw|usw|Abs|Art|Jr|Sr|al)\.$"
)
_LONGEST_ABBREVIATION = 10  # characters, with the character before it


def sentences(text: str) -> Iterator[str]:
    """Split text into sentences, list items and table rows; joined, they are the text.

    An unknown abbreviation ends a sentence early, which only moves a boundary.
    """
    begin = 0
    for candidate in _CANDIDATE.finditer(text):
        if _is_end(text, begin, candidate):
            yield text[begin : candidate.end()]
            begin = candidate.end()
    if begin < len(text):
        yield text[begin:]


def _is_end(text: str, begin: int, candidate: re.Match[str]) -> bool:
    end = candidate.end()
    mark = candidate[0].strip()
    if end >= len(text) or (candidate.start() == 0 and not mark):
        return False
    if "\n" in candidate[0]:
        line_begin = max(begin, text.rfind("\n", begin, candidate.start()) + 1)
        if _ITEM.match(text, end) or text.find(" | ", line_begin, candidate.start()) >= 0:
            return True
    if not mark:  # a line break within a sentence
        return False
    if mark[0] in "。！？｡":
        return True
    if text[end].islower():
        return False
    before = text[max(begin, candidate.start() - _LONGEST_ABBREVIATION) : candidate.start() + 1]
    # "1. " at the start of an item is its number.
    length = candidate.start() - begin
    is_number = mark == "." and length < _LONGEST_ABBREVIATION and before[:-1].strip("( \n").isdecimal()
    return not is_number and not (mark == "." and _NOT_AN_END.search(before))
