"""Format-independent documents: headings and paragraphs in reading order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, paragraph, group of list items, table or code block.

    Attributes:
        text: Not empty. Cells of a table are separated by `` | ``. Line breaks are kept where they matter.
        level: 1 to 6 for a heading, 0 otherwise.
        page: Page on which the block begins, from 1; None for formats without pages.
    """

    text: str
    level: int = 0
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """Blocks of a file, at least one."""

    blocks: tuple[Block, ...]


class UnreadableDocument(Exception):
    """A file without readable text. The message is a one-line predicate of the file, such as ``is empty``."""


class ReadFailed(UnreadableDocument):
    """The machine failed, not the file: another attempt may succeed."""


class TimeLimitExceeded(UnreadableDocument):
    """Reading takes more time than the limit."""
