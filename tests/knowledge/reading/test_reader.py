"""Limits and errors of reading: unreadable files, time, memory, and a crashed process."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from app.knowledge.reading.reader import (
    SUFFIXES,
    Block,
    DocumentReader,
    UnreadableDocument,
    read_document,
    read_here,
)
from tests.knowledge.reading.conftest import FILES, Read
from tests.knowledge.reading.written_files import docx_body, docx_of_parts, pdf, pdf_of_objects

NESTED = b"<w:tbl><w:tr><w:tc>" * 3000 + b"<w:p/>" + b"</w:tc></w:tr></w:tbl>" * 3000
ENTITIES = (
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
        (
            "a.docx",
            docx_of_parts(ENTITIES + docx_body(b"<w:p><w:r><w:t>&i;</w:t></w:r></w:p>")),
            "is damaged",
        ),
        ("a.odt", b"Hello", "has no supported format: .docx, .htm, .html, .markdown, .md, .pdf, .txt"),
    ],
)
def test_unreadable_files_are_rejected_with_the_reason(
    read: Read, name: str, content: bytes, reason: str
) -> None:
    with pytest.raises(UnreadableDocument, match=reason) as error:
        read(name, content)
    assert "\n" not in str(error.value)
    assert read("good.txt", "next") == [(0, "next")]


def test_files_over_the_size_limit_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * (1 << 20))
    with DocumentReader(most_bytes=1 << 20) as reader:
        assert len(reader.read(path).blocks[0].text) == 1 << 20
        path.write_bytes(b"a" * (3 << 19))
        with pytest.raises(UnreadableDocument, match=r"has 1.5 MB; at most 1 MB are read"):
            reader.read(path)


def test_missing_files_folders_and_pipes_are_rejected(tmp_path: Path, reader: DocumentReader) -> None:
    with pytest.raises(UnreadableDocument, match="does not exist"):
        reader.read(tmp_path / "a.txt")
    (tmp_path / "folder.txt").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    for name in ("folder.txt", "pipe.txt"):
        with pytest.raises(UnreadableDocument, match="is not a file"):
            reader.read(tmp_path / name)


def test_a_file_without_permission_is_rejected() -> None:
    path = Path("/tmp") / f"permission-{os.getpid()}.txt"
    path.write_text("secret")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root can read all files
    try:
        with pytest.raises(UnreadableDocument, match="cannot be read: permission denied"):
            read_here(path)
    finally:
        os.seteuid(user)
        path.unlink()


def test_file_names_can_have_any_bytes(tmp_path: Path, reader: DocumentReader) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/br\xfccke \xe2\x80\xa8.txt"))
    path.write_text("opens")
    assert reader.read(path).blocks == (Block("opens"),)


@pytest.mark.parametrize(
    "markup",
    [
        "<div>",
        "<span>",
        *(
            pytest.param(m, marks=pytest.mark.slow)
            for m in ("<ul><li>", "<table><tr><td>", "<b>", "<blockquote>")
        ),
    ],
)
@pytest.mark.slow
def test_deeply_nested_html_ends_within_the_time_limit(tmp_path: Path, markup: str) -> None:
    path = tmp_path / "a.html"
    path.write_text("before" + markup * 100_000 + "after")
    with DocumentReader(time_limit=2) as reader:
        try:
            outcome = reader.read(path).blocks[-1].text[-5:]
        except UnreadableDocument as error:
            outcome = str(error)
        too_long = "cannot be read: the reader takes more than 2 s of CPU time (KNOWLEDGE_FILE_SECONDS)"
        assert outcome in ("after", too_long)
        path.write_text("next")
        assert reader.read(path).blocks == (Block("next"),)


def test_a_reader_over_its_time_limit_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has 10^6 references to one page."""
    monkeypatch.setattr("app.knowledge.reading.reader._WALL_TIME_FACTOR", 200)  # of a busy machine
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


def test_a_reader_over_its_memory_limit_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text("<p>" * 3_000_000)
    with DocumentReader(memory_limit=200 << 20) as reader:
        with pytest.raises(
            UnreadableDocument, match=r"needs more than 200 MB|ended its process|SelectolaxError"
        ):
            reader.read(path)
        path.write_text("next")
        assert reader.read(path).blocks == (Block("next"),)


def test_a_crashed_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("opens")
    with DocumentReader() as reader:
        reader.read(path)
        for _ in range(2):
            process_id = reader.process_id
            assert process_id is not None
            os.kill(process_id, signal.SIGSEGV)
            os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOWAIT)  # the reader sees its end too
            assert reader.read(path).blocks == (Block("opens"),)


def test_close_ends_reading(tmp_path: Path) -> None:
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
    thread.join(120)
    assert problems == ["is not read: the reader was closed"]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_read_document_reads_files_of_all_suffixes() -> None:
    assert frozenset({".txt", ".md", ".markdown", ".html", ".htm", ".pdf", ".docx"}) == SUFFIXES
    document = read_document(FILES / "README.txt")
    assert document.blocks[0].text.startswith("handbook.pdf")
