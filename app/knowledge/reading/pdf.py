"""Extracts lines of PDF pages with PDFium. :mod:`app.knowledge.reading.lines` converts them to blocks."""

from __future__ import annotations

import logging

import pypdfium2 as pdfium  # type: ignore[import-untyped]
import pypdfium2.raw as raw  # type: ignore[import-untyped]

from app.knowledge.reading.document import Block, UnreadableDocument
from app.knowledge.reading.lines import Line, blocks
from app.knowledge.reading.text import clean

logger = logging.getLogger("tokenstream.knowledge")

_MOST_CHARACTERS = 50_000_000  # of all pages; a malicious file can repeat a page many times
# At a line's end. PDFium uses the first two for hyphens that it classifies as word division.
_HYPHENS = "\x02\ufffe\u00ad-\u2010"


def read(data: bytes) -> list[Block]:
    """Blocks with their pages. Lines in larger letters are headings.

    Raises:
        UnreadableDocument: The file is encrypted or damaged, or has no text.
    """
    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if error.err_code == raw.FPDF_ERR_PASSWORD:
            raise UnreadableDocument("is encrypted: a password is required") from error
        raise UnreadableDocument("is damaged, or not a PDF") from error
    pages: list[list[Line]] = []
    n_characters = 0
    for number in range(1, len(document) + 1):
        lines: list[Line] = []
        try:
            lines = _lines_of(document, number)
        except pdfium.PdfiumError as error:
            logger.debug("page %d is damaged and omitted: %s", number, error)
        n_characters += sum(len(line.text) for line in lines)
        if n_characters > _MOST_CHARACTERS:
            raise UnreadableDocument(f"has more than {_MOST_CHARACTERS // 10**6} million characters")
        pages.append(lines)
    if not any(pages):
        raise UnreadableDocument("has no text; it may be a scan")
    return blocks(pages)


def _lines_of(document: pdfium.PdfDocument, number: int) -> list[Line]:
    page = document[number - 1]
    try:
        text_page = page.get_textpage()
        try:
            return _lines_on(text_page.raw, text_page.count_chars())
        finally:
            text_page.close()
    finally:
        page.close()


def _lines_on(page: raw.FPDF_TEXTPAGE, n_characters: int) -> list[Line]:
    lines: list[Line] = []
    begin = 0
    characters = [raw.FPDFText_GetUnicode(page, index) for index in range(n_characters)]
    for index, code in enumerate(characters):
        if code in (10, 13, 2, 0xFFFE):
            is_hyphen = code in (2, 0xFFFE)
            _add_line(lines, page, characters, begin, index + is_hyphen)
            begin = index + 1
    _add_line(lines, page, characters, begin, n_characters)
    return lines


def _add_line(
    lines: list[Line], page: raw.FPDF_TEXTPAGE, characters: list[int], begin: int, end: int
) -> None:
    """Add the characters from ``begin`` to ``end``, without surrounding white space, as a line."""
    while begin < end and chr(characters[begin]).isspace():
        begin += 1
    while begin < end and chr(characters[end - 1]).isspace():
        end -= 1
    # On some systems PDFium returns characters beyond 16 bits as surrogate pairs.
    units = (
        "".join(map(chr, characters[begin:end])).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )
    is_divided = len(units) > 1 and units[-1] in _HYPHENS and units[-2].isalnum()
    text = " ".join(clean(units[:-1] if is_divided else units).split())
    if not text:
        return
    first, last = _box(page, begin), _box(page, end - 1 - is_divided)
    heights = sorted(_height(page, index) for index in range(begin, end, max(1, (end - begin) // 5)))
    lines.append(
        Line(
            text=text,
            is_divided=is_divided,
            left=first.left,
            right=last.right,
            bottom=first.bottom,
            height=heights[len(heights) // 2] or 1.0,
        )
    )


def _box(page: raw.FPDF_TEXTPAGE, index: int) -> raw.FS_RECTF:
    box = raw.FS_RECTF()
    raw.FPDFText_GetLooseCharBox(page, index, box)
    return box


def _height(page: raw.FPDF_TEXTPAGE, index: int) -> float:
    box = _box(page, index)
    return float(abs(box.top - box.bottom))
