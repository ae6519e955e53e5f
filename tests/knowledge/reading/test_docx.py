"""Reading .docx files."""

from __future__ import annotations

import io

import docx

from tests.knowledge.reading.conftest import Read
from tests.knowledge.reading.written_files import docx_body, docx_of_parts


def test_headings_lists_and_tables_are_read(read: Read) -> None:
    document = docx.Document()
    document.add_heading("Handbook", 0)
    document.add_heading("Bridges", 1)
    paragraph = document.add_paragraph("The Wren bridge opens at ")
    paragraph.add_run("06:40").bold = True
    document.add_paragraph("cart", style="List Bullet")
    document.add_paragraph("horse", style="List Bullet")
    table = document.add_table(2, 2)
    for cell, text in zip(
        (*table.rows[0].cells, *table.rows[1].cells), ["Pump", "Flow", "XK-1", "12"], strict=True
    ):
        cell.text = text
    document.add_heading("Tolls", 2)
    document.add_paragraph("Three coppers.")
    file = io.BytesIO()
    document.save(file)
    assert read("a.docx", file.getvalue()) == [
        (1, "Handbook"),
        (2, "Bridges"),
        (0, "The Wren bridge opens at 06:40"),
        (0, "- cart\n- horse"),
        (0, "Pump | Flow\nXK-1 | 12"),
        (3, "Tolls"),
        (0, "Three coppers."),
    ]


def test_tracked_changes_and_content_controls_are_read(read: Read) -> None:
    body = (
        b"<w:sdt><w:sdtContent><w:p><w:r><w:t>In a control.</w:t></w:r></w:p></w:sdtContent></w:sdt>"
        b"<w:p><w:r><w:t>Opens at </w:t></w:r><w:del><w:r><w:delText>six</w:delText></w:r></w:del>"
        b"<w:ins><w:r><w:t>seven</w:t></w:r></w:ins></w:p>"
    )
    assert read("a.docx", docx_of_parts(docx_body(body))) == [(0, "In a control."), (0, "Opens at seven")]
