"""A browser whose storage is blocked, full, or emptied: the page answers, and tells what it cannot keep."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.ui.chat_page import ChatPage
from tests.ui.test_history import drawer, talk, titles

PROBLEM = "This browser cannot keep conversations: its storage is full or not allowed."
BLOCKED = """
for (const name of ['localStorage', 'sessionStorage'])
  Object.defineProperty(window, name, {get() { throw new DOMException('blocked', 'SecurityError'); }});
IDBFactory.prototype.open = () => { throw new DOMException('blocked', 'SecurityError'); };
"""
FULL = """
Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); };
const put = IDBObjectStore.prototype.put;
window.fill = () => {
  IDBObjectStore.prototype.put = function (value) {
    const request = put.call(this, value);
    this.transaction.abort();
    return request;
  };
};
"""


@pytest.fixture
def expected_messages() -> list[str]:
    return ["SecurityError|InvalidStateError|null"]


def test_a_page_without_storage_answers(page: Page, server_url: str) -> None:
    page.add_init_script(BLOCKED)
    chat = ChatPage(page, server_url).open()
    chat.context.select_option("sql")
    expect(chat.examples.first).to_have_text("List the names of all customers from Paris.")
    talk(chat, "Where is Rome?", "In Italy.")
    expect(chat.answer(1)).to_have_text("In Italy.")
    expect(chat.notice).to_have_text(PROBLEM)
    expect(drawer(chat).get_by_text(PROBLEM)).to_be_visible()


def test_a_full_storage_is_told_where_it_fails(page: Page, server_url: str) -> None:
    page.add_init_script(FULL)
    chat = ChatPage(page, server_url).open()
    talk(chat, "Where is Rome?", "In Italy.")
    page.evaluate("fill()")
    chat.context.select_option("sql")
    talk(chat, "And Oslo?", "In Norway.")
    expect(chat.answer(2)).to_have_text("In Norway.")
    expect(chat.notice).to_have_text(PROBLEM)
    opened = drawer(chat)
    opened.get_by_role("button", name="Rename Where").click()
    opened.get_by_role("textbox", name="New title").fill("Cities")
    opened.get_by_role("textbox", name="New title").press("Enter")
    expect(opened.get_by_text(PROBLEM)).to_be_visible()
    expect(titles(opened)).to_have_text(["Where is Rome?"])


def test_conversations_are_kept_after_the_data_of_the_site_was_deleted(chat: ChatPage) -> None:
    talk(chat, "Where is Rome?", "In Italy.")
    origin = {"origin": chat.url, "storageTypes": "indexeddb"}
    chat.page.context.new_cdp_session(chat.page).send("Storage.clearDataForOrigin", origin)
    expect(drawer(chat).get_by_text("No conversations yet.")).to_be_visible()
    chat.page.keyboard.press("Escape")
    talk(chat, "And Oslo?", "In Norway.")
    expect(titles(drawer(chat))).to_have_text(["Where is Rome?"])
    expect(chat.notice).to_be_hidden()
