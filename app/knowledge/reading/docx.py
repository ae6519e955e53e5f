"""Word's .docx, by way of HTML: headings by style, lists, tables, text boxes and notes in their place."""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any

import mammoth  # type: ignore[import-untyped]

from app.knowledge.reading import html
from app.knowledge.reading.document import Block, UnreadableDocument

_LARGEST_PART = 100 << 20  # bytes of XML, unpacked; a thousand pages have some 10 MB
_MOST_PARTS = 20_000
_BACK_LINKS = re.compile(
    r'<a href="#[^"]*note-ref[^"]*">↑</a>'
)  # from the notes, at the end, to where they are referred to
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
    """The text with all tracked changes accepted; a title stands above all headings.

    Raises:
        UnreadableDocument: It is not a .docx, encrypted, damaged, or unpacks to too much.
    """
    if data.startswith(b"\xd0\xcf\x11\xe0"):  # the old container: .doc, or an encrypted .docx
        raise UnreadableDocument("is encrypted, or an old .doc: save it as .docx without a password")
    try:
        _check_parts(data)
        converted = mammoth.convert_to_html(
            io.BytesIO(data), style_map=_STYLES, convert_image=_without_images, ignore_empty_paragraphs=True
        )
    except (MemoryError, RecursionError, UnreadableDocument):
        raise
    except Exception as error:  # the library raises what its parsers and look-ups raise
        raise UnreadableDocument("is damaged, or no .docx") from error
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
    # A part that is larger than it says fails its checksum: never is more than this unpacked.
    size = sum(part.file_size for part in parts if part.filename.endswith((".xml", ".rels")))
    if size > _LARGEST_PART:
        raise UnreadableDocument(
            f"unpacks to {size >> 20} MB of text and markup; at most {_LARGEST_PART >> 20} MB are read"
        )


def _without_images(_image: Any) -> list[Any]:
    return []
