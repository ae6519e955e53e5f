"""Reads plain text, and decodes bytes for other text formats."""

from __future__ import annotations

import codecs
import logging
import re
import unicodedata

from app.knowledge.reading.document import Block, UnreadableDocument

logger = logging.getLogger("tokenstream.knowledge")

# UTF-32 first: UTF-16's byte order mark is a prefix of UTF-32's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ufffe\uffff]")  # without tabs, line and page breaks
_INVISIBLE = re.compile(r"[\u00ad\u200b\u2060\ufeff]")  # soft hyphens, word joiners and byte order marks
_MOST_CONTROLS = 1 / 200  # of all characters; text has few control characters, binary files have many
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n|\f")


def read(data: bytes) -> list[Block]:
    """Paragraphs, separated by blank lines and page breaks."""
    paragraphs = _BLANK_LINES.split(clean(decode(data)))
    lines = ([line.rstrip() for line in paragraph.split("\n") if line.strip()] for paragraph in paragraphs)
    return [Block("\n".join(paragraph)) for paragraph in lines if paragraph]


def decode(data: bytes, declared: str | None = None) -> str:
    """Decode a text file.

    Args:
        data: Contents of the file.
        declared: Encoding declared in the file, if any.

    Raises:
        UnreadableDocument: The data is not text.
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
                logger.debug("decoded as %s because it is not UTF-8", encoding)
            return _plausible(text)
    raise UnreadableDocument("is not text in UTF-8, UTF-16 or Windows-1252")


def clean(text: str) -> str:
    """The text in Unicode form NFC, with line feeds only, without invisible characters."""
    text = _CONTROLS.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n").replace("\v", "\n"))
    text = text.replace("\u2028", "\n").replace("\u2029", "\n\n").encode("utf-8", "replace").decode()
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", text))


def _checked(data: bytes, encoding: str) -> str:
    try:
        return _plausible(data.decode(encoding))
    except UnicodeDecodeError as error:
        raise UnreadableDocument(
            f"is damaged: has the byte order mark of {encoding.upper()}, but invalid text"
        ) from error


def _unmarked_utf16(data: bytes) -> str | None:
    """UTF-16 without a byte order mark, if every second byte is mostly 0, as in Latin text."""
    start = data[:4096]
    evens, odds = start[::2].count(0), start[1::2].count(0)
    if max(evens, odds) <= len(start) / 4 or min(evens, odds) > len(start) / 100:
        return None
    return "utf-16-le" if odds > evens else "utf-16-be"


def _plausible(text: str) -> str:
    if len(_CONTROLS.findall(text)) > len(text) * _MOST_CONTROLS + 3:
        raise UnreadableDocument("is not text")
    return text
