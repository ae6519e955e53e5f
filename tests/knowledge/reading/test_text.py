"""Reading plain text."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from app.knowledge.reading.reader import DocumentReader
from tests.knowledge.reading.conftest import Read


def test_blank_lines_separate_paragraphs(read: Read) -> None:
    content = "First line\r\nof a paragraph.  \r\n \t\r\n\r\nSecond\x0cThird\r\n"
    assert read("a.TXT", content) == [(0, "First line\nof a paragraph."), (0, "Second"), (0, "Third")]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
def test_text_can_have_any_usual_encoding(read: Read, encoding: str) -> None:
    assert read("a.txt", "Die Brücke öffnet um 6 – früh.".encode(encoding)) == [
        (0, "Die Brücke öffnet um 6 – früh.")
    ]


def test_an_assumed_encoding_is_logged(
    tmp_path: Path, reader: DocumentReader, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Brücke".encode("cp1252"))
    with caplog.at_level(logging.DEBUG, "tokenstream.knowledge"):
        reader.read(path)
    assert f"{path}: decoded as cp1252 because it is not UTF-8" in caplog.text


def test_letters_are_composed_and_invisible_characters_removed(read: Read) -> None:
    assert read("a.txt", "Bru\u0308\u00adcke\u200b\x07 opens") == [(0, "Brücke  opens")]
