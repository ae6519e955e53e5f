"""Reads HTML, including the HTML that Markdown and .docx files are converted to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from selectolax.lexbor import LexborHTMLParser, LexborNode

from app.knowledge.reading.document import Block
from app.knowledge.reading.text import clean, decode

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_LISTS = frozenset({"ul", "ol", "menu", "dir", "dl"})
_ITEMS = frozenset({"li", "dt", "dd"})
# fmt: off
_SKIPPED = frozenset({
    "audio", "button", "canvas", "datalist", "embed", "head", "iframe", "input", "nav", "noscript", "object",
    "script", "select", "style", "svg", "template", "textarea", "video",
})
_BLOCKS = _LISTS | _ITEMS | _HEADINGS.keys() | frozenset({
    "address", "article", "aside", "blockquote", "body", "caption", "center", "details", "dialog", "div",
    "fieldset", "figcaption", "figure", "footer", "form", "header", "hgroup", "hr", "legend", "main", "p",
    "pre", "search", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr",
})
# fmt: on
_INVISIBLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_DECLARED = re.compile(rb"""<meta\b[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.I)
_BREAK = "\f"  # represents <br>; a form feed in the page is treated like <br>


def read(data: bytes) -> list[Block]:
    """Blocks of a page. Its title becomes the first heading if the page has no heading of level 1."""
    declared = _DECLARED.search(data[:4096])
    return blocks(decode(data, declared[1].decode("ascii") if declared else None))


def blocks(markup: str) -> list[Block]:
    """Blocks of an HTML page or fragment."""
    parser = LexborHTMLParser(markup)
    writer = _Writer()
    for node, tag, opens in _walk(parser.root):
        if tag == "-text":
            writer.text(node.text_content or "")
        elif opens:
            writer.open(tag, node)
        else:
            writer.close(tag)
    found = writer.finish()
    title_node = parser.css_first("head > title")
    title = " ".join(clean(title_node.text()).split()) if title_node else ""
    if title and not any(block.level == 1 for block in found):
        found.insert(0, Block(title, 1))
    return found


def _walk(root: LexborNode | None) -> Iterator[tuple[LexborNode, str, bool]]:
    """Yield texts, and the start (True) and end (False) of visible elements. Not recursive."""
    node, above = root, list[tuple[LexborNode, str]]()
    while node is not None or above:
        if node is None:
            node, tag = above.pop()
            yield node, tag, False
        elif node.is_text_node:
            yield node, "-text", True
        elif node.is_element_node and (tag := node.tag or "") not in _SKIPPED and not _is_hidden(node):
            yield node, tag, True
            above.append((node, tag))
            node = node.first_child
            continue
        node = node.next


def _is_hidden(node: LexborNode) -> bool:
    attributes = node.attributes
    if not attributes:
        return False
    hidden = attributes.get("hidden", "until-found")  # browsers can search text with this value
    unseen = hidden != "until-found" or attributes.get("role") == "navigation"
    return unseen or bool(_INVISIBLE.search(attributes.get("style") or ""))


@dataclass(slots=True)
class _List:
    tag: str
    number: int
    marker: str = ""  # of an item without a written line


@dataclass(slots=True)
class _Table:
    """A table. If it contains headings, code or tables, it is a layout table, with paragraphs as cells."""

    rows: list[str] = field(default_factory=list)
    row: list[str] = field(default_factory=list)
    cell: list[str] | None = None
    is_layout: bool = False


class _Writer:
    """Converts a sequence of element starts, texts and element ends to blocks."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._inline: list[str] = []  # parts of the current line
        self._items: list[str] = []  # lines of the current list
        self._lists: list[_List] = []
        self._tables: list[_Table] = []
        self._level = 0  # of the current heading; 0 outside
        self._code = 0  # 1 within <pre>

    def text(self, text: str) -> None:
        self._inline.append(text)

    def open(self, tag: str, node: LexborNode) -> None:
        if tag == "br":
            self._inline.append("\n" if self._code else _BREAK)
        elif tag == "img":
            self._inline.append(f" {node.attributes.get('alt') or ''} ")
        elif tag in _HEADINGS:
            self._end_heading()
            self._leave_groups()
            self._level = _HEADINGS[tag]
        elif tag not in _BLOCKS:
            return
        elif self._level or self._code:
            self._inline.append("\n" if self._code else " ")
        elif tag == "pre":
            self._leave_groups()
            self._code = 1
        else:
            self._flush()
            self._open_block(tag, node)

    def close(self, tag: str) -> None:
        if tag in _HEADINGS:
            self._end_heading()
        elif tag not in _BLOCKS:
            return
        elif tag == "pre" and self._code:
            self._code = 0
            lines = [line.rstrip() for line in clean("".join(self._inline)).split("\n")]
            self._inline.clear()
            self._add("\n".join(lines).strip("\n"))
        elif not self._level and not self._code:
            self._flush()
            self._close_block(tag)

    def finish(self) -> list[Block]:
        self._end_heading()
        self._flush()
        self._end_list()
        return self._blocks

    def _open_block(self, tag: str, node: LexborNode) -> None:
        if tag in _LISTS:
            start = node.attributes.get("start") or ""
            self._lists.append(_List(tag, int(start) if start.isdecimal() and len(start) < 10 else 1))
        elif tag in _ITEMS and self._lists:
            inner = self._lists[-1]
            inner.marker = {"ol": f"{inner.number}. ", "dl": "  " if tag == "dd" else ""}.get(inner.tag, "- ")
            inner.number += 1
        elif tag == "table":
            self._leave_groups()
            self._tables.append(_Table())
        elif tag in ("td", "th") and self._tables:
            self._tables[-1].cell = []

    def _close_block(self, tag: str) -> None:
        if tag in _LISTS and self._lists:
            self._lists.pop()
            if not self._lists:
                self._end_list()
        if not self._tables:
            return
        table = self._tables[-1]
        if tag in ("td", "th"):
            table.row.append(" ".join(table.cell or ()))
            table.cell = None
        elif tag == "tr":
            if any(table.row):
                table.rows.append(" | ".join(table.row))
            table.row = []
        elif tag == "table":
            self._end_list()
            self._tables.pop()
            self._add("\n".join(table.rows))

    def _flush(self) -> None:
        """Add the current line to its cell, its list, or the blocks."""
        text = clean("".join(self._inline))
        self._inline.clear()
        lines = [line for part in text.split(_BREAK) if (line := " ".join(part.split()))]
        if not lines:
            return
        table = self._tables[-1] if self._tables else None
        if table and not table.is_layout:
            if table.cell is None:
                table.rows.append(" ".join(lines))  # the caption
            else:
                table.cell.extend(lines)
        elif self._lists:
            inner = self._lists[-1]
            indent = "  " * min(len(self._lists) - 1, 8)
            self._items.append(indent + inner.marker + f"\n{indent}  ".join(lines))
            inner.marker = "  "
        else:
            self._add("\n".join(lines))

    def _leave_groups(self) -> None:
        """End the current line, list and table row before a block that cannot be part of them."""
        self._flush()
        self._end_list()
        if self._tables and not self._tables[-1].is_layout:
            table = self._tables[-1]
            table.is_layout = True
            self._add("\n".join(table.rows))
            for text in (*table.row, *(table.cell or ())):
                self._add(text)
            table.rows, table.row, table.cell = [], [], None

    def _end_list(self) -> None:
        self._add("\n".join(self._items))
        self._items.clear()

    def _end_heading(self) -> None:
        if self._level:
            text = clean("".join(self._inline)).replace(_BREAK, " ").replace("¶", " ")
            self._inline.clear()
            level, self._level = self._level, 0
            self._add(" ".join(text.split()), level)

    def _add(self, text: str, level: int = 0) -> None:
        if text.strip():
            self._blocks.append(Block(text, level))
