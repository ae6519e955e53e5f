"""Where sentences end."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Each begins where a run of its first characters begins, so that no run is looked at from all its places.
_CANDIDATE = re.compile(
    r"""(?<![.!?…])[.!?…]+["'”’»)\]]*\s+"""  # scripts with spaces
    r"""|(?<![。！？｡])[。！？｡]+["'”’」』）]*\s*"""  # those without
    r"|(?<!\s)\s*\n\s*"
)
_ITEM = re.compile(r"(?:[-*+•◦▪‣·●○■□–]|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s")
_NOT_AN_END = re.compile(
    r"(?:^|[\s(])(?:[^\W\d_]|e\.g|i\.e|z\.B|d\.h|u\.a|p\.ex|Dr|Mr|Mrs|Ms|Prof|St|No|Nos|Nr|Fig|Figs|Eq|Sec|Ch|Vol|"
    r"pp|ca|approx|vs|cf|incl|resp|bzw|usw|Abs|Art|Jr|Sr|al)\.$"
)
_LONGEST_ABBREVIATION = 10  # characters, with what stands before it


def sentences(text: str) -> Iterator[str]:
    """The sentences of a paragraph, list items, or a table's rows; joined, they are the text.

    An abbreviation may end one too early; that only moves a boundary.
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
    if not mark:  # the end of a line, in the middle of a sentence
        return False
    if mark[0] in "。！？｡":
        return True
    if text[end].islower():
        return False
    before = text[max(begin, candidate.start() - _LONGEST_ABBREVIATION) : candidate.start() + 1]
    # "1. " at the begin of an item is its number.
    length = candidate.start() - begin
    is_number = mark == "." and length < _LONGEST_ABBREVIATION and before[:-1].strip("( \n").isdecimal()
    return not is_number and not (mark == "." and _NOT_AN_END.search(before))
