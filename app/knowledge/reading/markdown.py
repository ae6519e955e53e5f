"""Reads Markdown by conversion to HTML, which covers tables, lists and raw HTML."""

from __future__ import annotations

import re

from markdown_it import MarkdownIt

from app.knowledge.reading import html
from app.knowledge.reading.document import Block
from app.knowledge.reading.text import clean, decode

# YAML between lines of dashes, or TOML between lines of pluses, at the start. Begins with a field or comment.
_FRONT_MATTER = re.compile(
    r"""\A(?P<fence>---|\+\+\+)[ \t]*\n"""
    r"""(?P<fields>(?:[\w"'.-]+[ \t]*[:=]|[#\[]).*?)^(?P=fence)[ \t]*(?:\n|\Z)""",
    re.S | re.M,
)
_TITLE = re.compile(r"""^title[ \t]*[:=][ \t]*(?P<quote>["']?)(?P<title>.+?)(?P=quote)[ \t]*$""", re.M | re.I)


def read(data: bytes) -> list[Block]:
    """Blocks of CommonMark with tables and strikethrough. A title in the front matter becomes a heading."""
    text = clean(decode(data))
    title = ""
    if matter := _FRONT_MATTER.match(text):
        text = text[matter.end() :]
        if found := _TITLE.search(matter["fields"]):
            title = found["title"].strip()
    blocks = html.blocks(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))
    first = blocks[0] if blocks else None
    if title and not (first and first.level == 1 and first.text == title):
        blocks.insert(0, Block(title, 1))
    return blocks
