"""Plain text; and the way from bytes to characters that all formats without one of their own share."""

from __future__ import annotations

import codecs
import logging
import re
import unicodedata

from app.knowledge.reading.document import Block, UnreadableDocument

logger = logging.getLogger("tokenstream.knowledge")

# The longer first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROLS = re.compile(
    r"[\x00-\x08\x0e-\x1f\x7f\ufffe\uffff]"
)  # tabs, line and page breaks are not among them
_INVISIBLE = re.compile(r"[\u00ad\u200b\u2060\ufeff]")  # soft hyphens, joints and marks within words
_MOST_CONTROLS = 1 / 200  # of all characters, and a few; text has hardly any, other files are full of them
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n|\f")


def read(data: bytes) -> list[Block]:
    """Paragraphs, as blank lines and page breaks divide them."""
    paragraphs = _BLANK_LINES.split(clean(decode(data)))
    lines = ([line.rstrip() for line in paragraph.split("\n") if line.strip()] for paragraph in paragraphs)
    return [Block("\n".join(paragraph)) for paragraph in lines if paragraph]


def decode(data: bytes, declared: str | None = None) -> str:
    """The characters of a text file.

    Args:
        data: The file.
        declared: The encoding that the file names itself, if it does.

    Raises:
        UnreadableDocument: It is not text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _checked(data[len(mark) :], encoding)
    for encoding in filter(None, ("utf-8", _unmarked_utf16(data), declared, "cp1252")):
        try:
            text = data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
        if "\0" not in text or encoding == "cp1252":
            if encoding != "utf-8":
                logger.debug("read as %s: it is not UTF-8", encoding)
            return _plausible(text)
    raise UnreadableDocument("is not text in UTF-8, UTF-16 or Windows-1252")


def clean(text: str) -> str:
    """The same text with composed letters, plain line feeds, and without what nobody sees."""
    text = _CONTROLS.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n").replace("\v", "\n"))
    text = text.replace("\u2028", "\n").replace("\u2029", "\n\n").encode("utf-8", "replace").decode()
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", text))


def _checked(data: bytes, encoding: str) -> str:
    try:
        return _plausible(data.decode(encoding))
    except UnicodeDecodeError as error:
        raise UnreadableDocument(f"is damaged: begins as {encoding.upper()} text, but is not") from error


def _unmarked_utf16(data: bytes) -> str | None:
    """UTF-16 without a mark shows in the zeros that every second byte of Latin text is."""
    start = data[:4096]
    evens, odds = start[::2].count(0), start[1::2].count(0)
    if max(evens, odds) <= len(start) / 4 or min(evens, odds) > len(start) / 100:
        return None
    return "utf-16-le" if odds > evens else "utf-16-be"


def _plausible(text: str) -> str:
    if len(_CONTROLS.findall(text)) > len(text) * _MOST_CONTROLS + 3:
        raise UnreadableDocument("is not text")
    return text
