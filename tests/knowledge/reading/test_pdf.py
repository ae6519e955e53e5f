"""Reading PDF files."""

from __future__ import annotations

import pytest

from app.knowledge.reading.reader import Block, DocumentReader, UnreadableDocument
from tests.knowledge.reading.conftest import FILES, Read
from tests.knowledge.reading.written_files import TextLine, pdf


def test_a_printed_page_has_headings_paragraphs_and_page_numbers(reader: DocumentReader) -> None:
    assert reader.read(FILES / "handbook.pdf").blocks == (
        Block("Handbook of the Wren Bridge", 1, 1),
        Block(
            "The Wren Bridge in Callowmere opens at 06:40. It closes at night whenever the responsible "
            "bridgekeeper has completed the documentation of extraordinary circumstances, interruptions and "
            "misunderstandings between the administrations.",
            0,
            1,
        ),
        Block("A second paragraph is short.", 0, 1),
        Block("Pumps", 2, 1),
        Block("Pump XK-4471-B delivers 12 litres a second. Pump XK-4472-A rests.", 0, 1),
        Block("Day Opens\nMonday 06:40", 0, 1),
        Block("Tolls", 2, 2),
        Block("A cart pays three coppers.", 0, 2),
    )


def column(*texts: str, top: float = 700, pitch: float = 14) -> list[TextLine]:
    return [(12, 50, top - pitch * index, text) for index, text in enumerate(texts)]


def test_hyphenated_words_are_joined(read: Read) -> None:
    lines = column(
        "The well-known bridge has a docu-",
        "mentation of its own, and a well-",
        "known keeper. Pump XK-",
        "4471-B is described there too, well.",
    )
    [(_, text)] = read("a.pdf", pdf([lines]))
    assert text.replace("\n", " ") == (
        "The well-known bridge has a documentation of its own, and a well-known keeper. "
        "Pump XK-4471-B is described there too, well."
    )


def test_running_headers_and_footers_are_removed(read: Read) -> None:
    pages = [
        [
            (9, 50, 800, "Callowmere Council"),
            *column(*(f"Bill {line} of {page * page} coppers." for line in range(6))),
            (9, 300, 40, f"Page {page} of 5"),
        ]
        for page in range(1, 6)
    ]
    texts = "\n".join(text for _, text in read("a.pdf", pdf(pages)))
    assert texts.count("Callowmere Council") == 1
    assert "Page" not in texts
    for page in range(1, 6):  # these lines differ in more than the page number
        assert f"Bill 0 of {page * page} coppers." in texts
        assert f"Bill 5 of {page * page} coppers." in texts


def test_equal_lines_at_different_heights_are_kept(read: Read) -> None:
    pages = [
        column(*(f"Step {line}." for line in range(6)), top=700 - 20 * page, pitch=30) for page in range(5)
    ]
    texts = [text for _, text in read("a.pdf", pdf(pages))]
    assert "\n".join(texts).count("Step 0.") == 5


def test_an_encrypted_pdf_is_read_only_without_a_password(reader: DocumentReader) -> None:
    assert reader.read(FILES / "owner_locked.pdf").blocks == (Block("The ferry leaves at ten.", 0, 1),)
    with pytest.raises(UnreadableDocument, match="is encrypted: a password is required"):
        reader.read(FILES / "locked.pdf")
