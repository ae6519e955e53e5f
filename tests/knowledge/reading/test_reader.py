from __future__ import annotations

import io
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docx
import pytest

from app.knowledge.reading.reader import (
    SUFFIXES,
    Block,
    DocumentReader,
    UnreadableDocument,
    read_document,
    read_here,
)
from tests.knowledge.reading.written_files import TextLine, docx_body, docx_of_parts, pdf, pdf_of_objects

FILES = Path(__file__).parent / "files"


@pytest.fixture(scope="module")
def reader() -> Iterator[DocumentReader]:
    with DocumentReader() as reader:
        yield reader


Read = Callable[[str, "str | bytes"], "list[tuple[int, str]]"]


@pytest.fixture
def read(tmp_path: Path, reader: DocumentReader) -> Read:
    """Writes a file and gives its blocks as levels and texts."""

    def read(name: str, content: str | bytes) -> list[tuple[int, str]]:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return [(block.level, block.text) for block in reader.read(path).blocks]

    return read


# --- text


def test_text_is_divided_by_blank_lines(read: Read) -> None:
    content = "First line\r\nof a paragraph.  \r\n \t\r\n\r\nSecond\x0cThird\r\n"
    assert read("a.TXT", content) == [(0, "First line\nof a paragraph."), (0, "Second"), (0, "Third")]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
def test_text_of_any_usual_encoding(read: Read, encoding: str) -> None:
    assert read("a.txt", "Die Brücke öffnet um 6 – früh.".encode(encoding)) == [
        (0, "Die Brücke öffnet um 6 – früh.")
    ]


def test_an_encoding_that_was_guessed_is_logged(
    tmp_path: Path, reader: DocumentReader, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Brücke".encode("cp1252"))
    with caplog.at_level(logging.DEBUG, "tokenstream.knowledge"):
        reader.read(path)
    assert f"{path}: decoded as cp1252 because it is not UTF-8" in caplog.text


def test_letters_are_composed_and_invisible_ones_left_out(read: Read) -> None:
    assert read("a.txt", "Bru\u0308\u00adcke\u200b\x07 opens") == [(0, "Brücke  opens")]


# --- Markdown


def test_markdown(read: Read) -> None:
    content = """---
title: "The: Handbook"
tags: [secret]
---
Bridges
=======
The *Wren* [bridge](http://example.com/a) opens<br>at `06:40`. <b>Bold</b> &amp; ~~old~~
<script>steal()</script>

## Pumps ##

- one
- two
  1. inner

```python
# Not a heading

def pump():
    return 1
```

| Pump | Flow |
|------|-----:|
| XK-4471-B | 12 |

<table><tr><td>raw</td><td>html</td></tr></table>
"""
    assert read("a.md", content) == [
        (1, "The: Handbook"),
        (1, "Bridges"),
        (0, "The Wren bridge opens\nat 06:40. Bold & old"),
        (2, "Pumps"),
        (0, "- one\n- two\n  1. inner"),
        (0, "# Not a heading\n\ndef pump():\n    return 1"),
        (0, "Pump | Flow\nXK-4471-B | 12"),
        (0, "raw | html"),
    ]


def test_a_title_that_is_the_first_heading_too_is_there_once(read: Read) -> None:
    assert read("a.markdown", "+++\ntitle = 'Tolls'\n+++\n# Tolls\nThree coppers.") == [
        (1, "Tolls"),
        (0, "Three coppers."),
    ]


def test_a_line_that_is_no_front_matter_stays(read: Read) -> None:
    assert read("a.md", "---\n\nText\n\n---\n\nMore") == [(0, "Text"), (0, "More")]


# --- HTML


def test_html(read: Read) -> None:
    content = """<!doctype html><html><head><title>Callowmere</title><style>p {}</style></head><body>
<nav>Home</nav><div role=navigation>Menu</div><script>steal()</script><template>later</template>
<p hidden>secret<p style="color:red; display: none">unseen<p>The   <b>Wren</b>
bridge &mdash; opens.<br>Daily.
<h2>Tolls <a class=headerlink>¶</a></h2><details><summary>Who?</summary>Carts.</details>
<ul><li>cart<li>horse<ol start=3><li>foal</ol></ul>
<table><caption>Pumps</caption><tr><th>Name<th>Flow<tr><td>XK-4471-B<td><p>12</p><p>l/s</p></table>
<dl><dt>Wren<dd>A bridge.</dl><pre>a = 1

  b = 2</pre></body></html>"""
    assert read("a.html", content) == [
        (1, "Callowmere"),
        (0, "The Wren bridge — opens.\nDaily."),
        (2, "Tolls"),
        (0, "Who?"),
        (0, "Carts."),
        (0, "- cart\n- horse\n  3. foal"),
        (0, "Pumps\nName | Flow\nXK-4471-B | 12 l/s"),
        (0, "Wren\n  A bridge."),
        (0, "a = 1\n\n  b = 2"),
    ]


def test_html_with_a_first_heading_needs_no_title(read: Read) -> None:
    assert read("a.htm", "<title>Site</title><h1>Tolls</h1>Three") == [(1, "Tolls"), (0, "Three")]


def test_tables_for_the_layout_are_paragraphs(read: Read) -> None:
    content = "<table><tr><td>Left<td><h2>Tolls</h2><table><tr><td>a<td>b</table>Three<td>Right</table>"
    assert read("a.html", content) == [(0, "Left"), (2, "Tolls"), (0, "a | b"), (0, "Three"), (0, "Right")]


def test_html_names_its_encoding(read: Read) -> None:
    content = '<meta charset="windows-1251"><p>Мост'.encode("windows-1251")
    assert read("a.html", content) == [(0, "Мост")]


# --- .docx


def test_docx(read: Read) -> None:
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


def test_docx_with_changes_and_boxes(read: Read) -> None:
    body = (
        b"<w:sdt><w:sdtContent><w:p><w:r><w:t>In a control.</w:t></w:r></w:p></w:sdtContent></w:sdt>"
        b"<w:p><w:r><w:t>Opens at </w:t></w:r><w:del><w:r><w:delText>six</w:delText></w:r></w:del>"
        b"<w:ins><w:r><w:t>seven</w:t></w:r></w:ins></w:p>"
    )
    assert read("a.docx", docx_of_parts(docx_body(body))) == [(0, "In a control."), (0, "Opens at seven")]


# --- PDF


def test_pdf_of_a_browser(reader: DocumentReader) -> None:
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


def test_hyphens_at_line_ends(read: Read) -> None:
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


def test_running_headers_and_footers_are_left_out(read: Read) -> None:
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
    for page in range(1, 6):  # alike, and at the same place, but not for their page's number
        assert f"Bill 0 of {page * page} coppers." in texts
        assert f"Bill 5 of {page * page} coppers." in texts


def test_pages_that_begin_alike_at_different_places_keep_their_lines(read: Read) -> None:
    pages = [
        column(*(f"Step {line}." for line in range(6)), top=700 - 20 * page, pitch=30) for page in range(5)
    ]
    texts = [text for _, text in read("a.pdf", pdf(pages))]
    assert "\n".join(texts).count("Step 0.") == 5


def test_encrypted_pdf(reader: DocumentReader) -> None:
    assert reader.read(FILES / "owner_locked.pdf").blocks == (Block("The ferry leaves at ten.", 0, 1),)
    with pytest.raises(UnreadableDocument, match="is encrypted: a password is required"):
        reader.read(FILES / "locked.pdf")


# --- what cannot be read

NESTED = b"<w:tbl><w:tr><w:tc>" * 3000 + b"<w:p/>" + b"</w:tc></w:tr></w:tbl>" * 3000
LAUGHS = (
    b'<!DOCTYPE x [<!ENTITY a "ha">'
    + b"".join(b'<!ENTITY %c "%b">' % (98 + level, b"&%c;" % (97 + level) * 50) for level in range(8))
    + b"]>"
)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\t ", "is empty"),
        ("a.md", b"<!-- nothing -->", "has no text"),
        ("a.txt", bytes(range(256)) * 10, "is not text"),
        ("a.md", b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" * 9, "is not text"),
        ("a.txt", b"\xff\xfea", "is damaged: has the byte order mark of UTF-16-LE, but invalid text"),
        ("a.pdf", b"%PDF-1.7 and no more", "is damaged, or not a PDF"),
        ("a.pdf", b"Hello", "is damaged, or not a PDF"),
        ("a.pdf", pdf([[], []]), "has no text; it may be a scan"),
        ("a.docx", b"Hello", "is damaged, or not a .docx"),
        ("a.docx", docx_of_parts(b"<w:document"), "is damaged, or not a .docx"),
        ("a.docx", docx_of_parts(docx_body(b""))[:-30], "is damaged, or not a .docx"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"x" * 600, "is encrypted, or an old .doc"),
        ("a.docx", docx_of_parts(docx_body(b"<w:p/>" * (18 << 20))), r"unpacks to 108 MB .* at most 100 MB"),
        ("a.docx", docx_of_parts(docx_body(NESTED)), "is nested too deeply"),
        ("a.docx", docx_of_parts(LAUGHS + docx_body(b"<w:p><w:r><w:t>&i;</w:t></w:r></w:p>")), "is damaged"),
        ("a.odt", b"Hello", "has no supported format: .docx, .htm, .html, .markdown, .md, .pdf, .txt"),
    ],
)
def test_unreadable(read: Read, name: str, content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableDocument, match=reason) as caught:
        read(name, content)
    assert "\n" not in str(caught.value)
    assert read("good.txt", "next") == [(0, "next")]


def test_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * (1 << 20))
    with DocumentReader(most_bytes=1 << 20) as reader:
        assert len(reader.read(path).blocks[0].text) == 1 << 20
        path.write_bytes(b"a" * (3 << 19))
        with pytest.raises(UnreadableDocument, match=r"has 1.5 MB; at most 1 MB are read"):
            reader.read(path)


def test_not_there(tmp_path: Path, reader: DocumentReader) -> None:
    with pytest.raises(UnreadableDocument, match="does not exist"):
        reader.read(tmp_path / "a.txt")
    (tmp_path / "folder.txt").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    for name in ("folder.txt", "pipe.txt"):
        with pytest.raises(UnreadableDocument, match="is not a file"):
            reader.read(tmp_path / name)


def test_permission_denied() -> None:
    path = Path("/tmp") / f"permission-{os.getpid()}.txt"
    path.write_text("secret")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read anything
    try:
        with pytest.raises(UnreadableDocument, match="cannot be read: permission denied"):
            read_here(path)
    finally:
        os.seteuid(user)
        path.unlink()


def test_names_of_any_bytes(tmp_path: Path, reader: DocumentReader) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/br\xfccke \xe2\x80\xa8.txt"))
    path.write_text("opens")
    assert reader.read(path).blocks == (Block("opens"),)


@pytest.mark.parametrize("markup", ["<div>", "<span>", "<ul><li>", "<table><tr><td>", "<b>", "<blockquote>"])
def test_deeply_nested_html_ends(tmp_path: Path, markup: str) -> None:
    path = tmp_path / "a.html"
    path.write_text("before" + markup * 100_000 + "after")
    with DocumentReader(time_limit=2) as reader:
        try:
            outcome = reader.read(path).blocks[-1].text[-5:]
        except UnreadableDocument as error:
            outcome = str(error)
        assert outcome in ("after", "cannot be read: the reader takes more than 2 s of CPU time")
        path.write_text("next")
        assert reader.read(path).blocks == (Block("next"),)


def test_a_reader_that_never_ends_is_ended(tmp_path: Path) -> None:
    """A page tree of 10^6 pages that are all the same one."""
    levels = 6
    pages = [
        f"<< /Type /Pages /Count {10 ** (levels - level)} /Kids [{f'{level + 3} 0 R ' * 10}] >>"
        for level in range(levels)
    ]
    page = "<< /Type /Page /MediaBox [0 0 9 9] >>"
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_of_objects(["<< /Type /Catalog /Pages 2 0 R >>", *pages, page]))
    with (
        DocumentReader(time_limit=1) as reader,
        pytest.raises(UnreadableDocument, match="cannot be read: the reader takes more than 1 s of CPU time"),
    ):
        reader.read(path)


def test_memory_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text("<p>" * 3_000_000)
    with DocumentReader(memory_limit=200 << 20) as reader:
        with pytest.raises(
            UnreadableDocument, match=r"needs more than 200 MB|ended its process|SelectolaxError"
        ):
            reader.read(path)
        path.write_text("next")
        assert reader.read(path).blocks == (Block("next"),)


def test_a_child_that_crashes_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("opens")
    with DocumentReader() as reader:
        reader.read(path)
        for _ in range(2):
            os.kill(reader.process_id or 0, signal.SIGSEGV)
            time.sleep(0.2)
            assert reader.read(path).blocks == (Block("opens"),)


def test_close_ends_what_is_being_read(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text("<ul><li>" * 100_000)
    reader = DocumentReader()
    problems: list[str] = []

    def read() -> None:
        try:
            reader.read(path)
        except UnreadableDocument as error:
            problems.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    while not reader.process_id:
        time.sleep(0.01)
    time.sleep(0.5)
    process = reader.process_id
    reader.close()
    thread.join(20)
    assert problems == ["is not read: the reader was closed"]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_read_document() -> None:
    assert frozenset({".txt", ".md", ".markdown", ".html", ".htm", ".pdf", ".docx"}) == SUFFIXES
    document = read_document(FILES / "README.txt")
    assert document.blocks[0].text.startswith("handbook.pdf")
