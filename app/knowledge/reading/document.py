"""What a file of any format becomes: headings and paragraphs in their order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, or a piece of text that belongs together.

    Attributes:
        text: Not empty. A paragraph, a group of list items, a table (its cells separated by `` | ``) or
            code, with line breaks where they matter.
        level: 1 to 6 for a heading, 0 for everything else.
        page: The page it begins on, counted from 1, in formats that have pages.
    """

    text: str
    level: int = 0
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """The blocks of a file; at least one."""

    blocks: tuple[Block, ...]


class UnreadableDocument(Exception):
    """A file that gives no text. Its message, one line, is the reason and follows the file's name."""
