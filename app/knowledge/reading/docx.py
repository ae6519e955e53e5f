"""Reads .docx files: converts them to HTML with headings by style, lists, tables, text boxes and notes."""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any

import mammoth  # type: ignore[import-untyped]

from app.knowledge.reading import html
from app.knowledge.reading.document import Block, UnreadableDocument

_MAX_XML_BYTES = 100 << 20  # unpacked; a thousand pages have about 10 MB
_MOST_PARTS = 20_000
# Links from footnotes back to their references.
_BACK_LINKS = re.compile(r'<a href="#[^"]*note-ref[^"]*">↑</a>')
_STYLES = """
p[style-name='Title'] => h1.title:fresh
p[style-name='Subtitle'] => p:fresh
p[style-name='heading 7'] => h6:fresh
p[style-name='heading 8'] => h6:fresh
p[style-name='heading 9'] => h6:fresh
p[style-name='List Bullet'] => ul > li:fresh
p[style-name='List Number'] => ol > li:fresh
"""


def read(data: bytes) -> list[Block]:
    """Blocks of the document with all tracked changes accepted. The title is the only heading of level 1.

    Raises:
        UnreadableDocument: The file is not a .docx, encrypted, damaged, or exceeds a size limit.
    """
    if data.startswith(b"\xd0\xcf\x11\xe0"):  # OLE container: an old .doc, or an encrypted .docx
        raise UnreadableDocument("is encrypted, or an old .doc: save it as .docx without a password")
    try:
        _check_parts(data)
        converted = mammoth.convert_to_html(
            io.BytesIO(data), style_map=_STYLES, convert_image=_without_images, ignore_empty_paragraphs=True
        )
    except (MemoryError, RecursionError, UnreadableDocument):
        raise
    except Exception as error:  # the library does not wrap the exceptions of its parsers
        raise UnreadableDocument("is damaged, or not a .docx") from error
    markup = _BACK_LINKS.sub("", converted.value)
    found = html.blocks(markup)
    if '<h1 class="title">' not in markup:
        return found
    title = next(position for position, block in enumerate(found) if block.level == 1)
    return [
        Block(block.text, min(block.level + 1, 6)) if block.level and position != title else block
        for position, block in enumerate(found)
    ]


def _check_parts(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = archive.infolist()
    if len(parts) > _MOST_PARTS:
        raise UnreadableDocument(f"has {len(parts)} parts; at most {_MOST_PARTS} are read")
    # The declared size is a hard limit: zipfile unpacks no more than that.
    size = sum(part.file_size for part in parts if part.filename.endswith((".xml", ".rels")))
    if size > _MAX_XML_BYTES:
        raise UnreadableDocument(
            f"unpacks to {size >> 20} MB of text and markup; at most {_MAX_XML_BYTES >> 20} MB are read"
        )


def _without_images(_image: Any) -> list[Any]:
    return []
