"""The documents of the knowledge base on the web page."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from app.service import MOST_BYTES
from tests.conftest import ROOT, Server
from tests.ui.chat_page import ChatPage


def drawer(chat: ChatPage) -> Locator:
    chat.page.get_by_role("button", name="Documents", exact=True).click()
    return chat.page.get_by_role("dialog", name="Documents")


def document(name: str, state: str) -> dict[str, Any]:
    return {"name": name, "state": state, "chunks": 0, "bytes": 9, "problem": None, "waiting_since": None}


def drop(page: Page, *paths: Path) -> None:
    """Drop files on the page, as from another program."""
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    mouse = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        mouse.send("Input.dispatchDragEvent", {"type": kind, "x": 600, "y": 300, "data": data})


def test_documents_are_listed_with_state_and_reason(
    start_server: Callable[..., Server], page: Page, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(ROOT / "data" / "callowmere.md", folder)
    (folder / "broken.pdf").write_bytes(b"no PDF")
    index = str(tmp_path / "index")
    server = start_server(KNOWLEDGE="on", DATA_PATH=str(folder), KNOWLEDGE_INDEX=index).wait_until()
    chat = ChatPage(page, server.url).open()
    opened = drawer(chat)
    expect(opened.locator("#indexed")).to_have_text("1 of 2 documents indexed, 1 skipped.")
    entries = opened.get_by_role("listitem")
    expect(entries).to_have_count(2)
    skipped, indexed = entries.all()
    expect(indexed).to_contain_text("callowmere.md")
    expect(indexed.locator(".state")).to_contain_text("Indexed, ")
    expect(skipped).to_contain_text("broken.pdf")
    expect(skipped.locator(".state")).to_have_text("Skipped")
    expect(skipped.locator(".problem")).not_to_be_empty()
    (folder / "later.md").write_text("# Later\n\nA text that comes later.\n")
    expect(opened.get_by_text("later.md")).to_be_visible()


def test_a_warning_stays_while_documents_wait(page: Page, server_url: str) -> None:
    waiting = 2

    def state(route: Route) -> None:
        counts = {"indexed": 3 - waiting, "waiting": waiting, "skipped": 0, "chunks": 4}
        documents = [document(f"{i}.md", "waiting" if i < waiting else "indexed") for i in range(3)]
        problem = {"indexing": waiting > 0, "problem": None, "waiting_since": None}
        route.fulfill(json={"counts": counts, "documents": documents, "embedding_model": "x", **problem})

    page.route("**/contexts", lambda route: route.fulfill(json={**route.fetch().json(), "knowledge": True}))
    page.route("**/v1/knowledge", state)
    chat = ChatPage(page, server_url).open()
    warning = page.get_by_text("2 documents not indexed yet: answers may not know everything.")
    expect(warning).to_be_visible()
    opened = drawer(chat)
    progress = opened.get_by_role("progressbar", name="Indexing")
    assert progress.evaluate("(node) => [node.value, node.max]") == [1, 3]
    waiting = 0
    expect(progress).to_be_hidden()
    expect(opened.get_by_text("3 of 3 documents indexed.")).to_be_visible()
    expect(page.locator("#waiting")).to_be_hidden()


def test_a_server_without_documents_has_no_drawer(chat: ChatPage) -> None:
    expect(chat.page.get_by_role("button", name="Documents")).to_have_count(0)


def test_dropped_documents_are_indexed(
    start_server: Callable[..., Server], page: Page, tmp_path: Path, expected_messages: list[str]
) -> None:
    expected_messages.append("status of 400")
    folder, dropped = tmp_path / "data", tmp_path / "dropped"
    folder.mkdir()
    (dropped / "a folder").mkdir(parents=True)
    (dropped / "wren bridge.md").write_text("# Wren\n\nThe Wren Bridge opens at 06:25.")
    (dropped / "virus.exe").write_bytes(b"MZ")
    with (dropped / "large.txt").open("wb") as large:
        large.truncate(MOST_BYTES + 1)
    paths = {"DATA_PATH": str(folder), "KNOWLEDGE_INDEX": str(tmp_path / "index")}
    server = start_server(KNOWLEDGE="on", KNOWLEDGE_UPLOADS="on", **paths).wait_until()
    ChatPage(page, server.url).open()
    drop(page, *sorted(dropped.iterdir()))
    opened = page.get_by_role("dialog", name="Documents")
    notice = opened.locator("#upload-notice")
    expect(notice).to_have_text(
        re.compile(
            r"^1 document added\. a folder cannot be read; folders cannot be added\. "
            r"large\.txt is larger than 50 MB\. virus\.exe should end with one of .*\.$"
        )
    )
    expect(opened.get_by_text("1 of 1 document indexed.")).to_be_visible()
    expect(opened.get_by_role("listitem")).to_contain_text("uploads/wren bridge.md")
    assert [path.name for path in (folder / "uploads").iterdir()] == ["wren bridge.md"]
    file = {"name": "more.txt", "mimeType": "text/plain", "buffer": b"The bridge is blue."}
    opened.locator("#add").set_input_files(files=[file])  # type: ignore[list-item]
    expect(opened.get_by_text("2 of 2 documents indexed.")).to_be_visible()


def test_a_dropped_file_does_not_replace_the_page(chat: ChatPage, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Text.")
    chat.page.evaluate(
        "addEventListener('dragover', (event) => { window.isTaken = event.defaultPrevented; })"
    )
    drop(chat.page, tmp_path / "a.txt")
    assert chat.page.evaluate("isTaken"), "the browser would leave the page and show the file"


LINES = """(node) => {
  const {paddingTop, paddingBottom, lineHeight} = getComputedStyle(node);
  const [above, below, line] = [paddingTop, paddingBottom, lineHeight].map(parseFloat);
  return Math.round((node.clientHeight - above - below) / line);
}"""


@pytest.mark.parametrize("width", [320, 390])
def test_the_controls_fit_with_all_buttons(page: Page, server_url: str, width: int) -> None:
    page.route("**/contexts", lambda route: route.fulfill(json={**route.fetch().json(), "knowledge": True}))
    page.route("**/v1/knowledge", lambda route: route.abort())
    page.set_viewport_size({"width": width, "height": 640})
    chat = ChatPage(page, server_url).open()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    box = chat.page.get_by_role("button", name="Documents", exact=True).bounding_box()
    assert box is not None
    assert 0 <= box["x"] <= width - box["width"]
    chat.context.select_option("classifier")
    chat.fake_answers(lambda route: route.fulfill(body='good\n\x1e{"finish_reason": "eos_token"}'))
    chat.ask("I love it.")
    chat.wait_until_done()
    for selector in ("h1", "#send", ".context span"):
        assert page.locator(selector).evaluate(LINES) == 1, selector


@pytest.fixture
def expected_messages() -> list[str]:
    return ["ERR_FAILED"]
