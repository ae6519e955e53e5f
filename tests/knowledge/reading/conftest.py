"""A reader of documents, and a function that reads given contents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.knowledge.reading.reader import DocumentReader

FILES = Path(__file__).parent / "files"


@pytest.fixture(scope="module")
def reader() -> Iterator[DocumentReader]:
    with DocumentReader() as reader:
        yield reader


Read = Callable[[str, "str | bytes"], "list[tuple[int, str]]"]


@pytest.fixture
def read(tmp_path: Path, reader: DocumentReader) -> Read:
    """Write a file and return the levels and texts of its blocks."""

    def read(name: str, content: str | bytes) -> list[tuple[int, str]]:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return [(block.level, block.text) for block in reader.read(path).blocks]

    return read
