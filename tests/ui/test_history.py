"""Conversations that the browser keeps: list, search, rename, delete, files, and a reload mid-stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.ui.chat_page import ChatPage
from tests.ui.relay import Relay

FIGURES = {"finish_reason": "eos_token", "prompt_tokens": 40, "cached_tokens": 30, "generated_tokens": 8}
TRAILER = f"\n\x1e{json.dumps(FIGURES)}"


def talk(chat: ChatPage, question: str, answer: str = "Yes.") -> None:
    chat.page.unroute("**/token_stream")
    chat.fake_answers(lambda route: route.fulfill(body=answer + TRAILER))
    chat.ask(question)
    chat.wait_until_done()


def drawer(chat: ChatPage) -> Locator:
    chat.page.get_by_role("button", name="Conversations", exact=True).click()
    return chat.page.get_by_role("dialog", name="Conversations")


def titles(opened: Locator) -> Locator:
    return opened.locator(".conversation .name")


@pytest.fixture
def two(chat: ChatPage) -> ChatPage:
    """The page with two conversations; the second one is shown."""
    talk(chat, "Where is Málaga?", "It is in **Spain**.")
    talk(chat, "And Rome?", "In Italy.")
    chat.clear.click()
    talk(chat, "How does a rainbow form?", "Light and drops.")
    return chat


def test_conversations_are_listed_searched_and_opened(two: ChatPage) -> None:
    opened = drawer(two)
    expect(opened.get_by_text("Kept in this browser on this device only.")).to_be_visible()
    expect(opened.get_by_role("listitem")).to_have_count(2)
    expect(titles(opened)).to_have_text(["How does a rainbow form?", "Where is Málaga?"])
    expect(opened.locator("[aria-current]")).to_contain_text("rainbow")
    search = opened.get_by_label("Search conversations")
    search.fill("malaga ITALY")
    expect(opened.get_by_role("listitem")).to_have_count(1)
    expect(opened.get_by_text("1 conversation found")).to_be_visible()
    search.fill("nowhere")
    expect(opened.get_by_role("listitem")).to_have_count(0)
    search.fill("")
    opened.get_by_text("Where is Málaga?").click()
    expect(opened).to_be_hidden()
    expect(two.question(2)).to_have_text("And Rome?")
    expect(two.answer(1).locator("strong")).to_have_text("Spain")
    talk(two, "And Oslo?")
    expect(titles(drawer(two))).to_have_text(["Where is Málaga?", "How does a rainbow form?"])


def test_a_conversation_is_renamed_and_deleted(two: ChatPage) -> None:
    opened = drawer(two)
    opened.get_by_role("button", name="Rename How does").click()
    field = opened.get_by_role("textbox", name="New title")
    expect(field).to_have_value("How does a rainbow form?")
    field.fill("Physics")
    field.press("Enter")
    expect(opened.locator(".name").first).to_have_text("Physics")
    assert two.page.title() == "Physics – Tokenstream"
    opened.get_by_role("button", name="Delete How does").click()
    expect(opened.get_by_role("listitem")).to_have_count(2)
    opened.get_by_role("button", name="Sure?").click()
    expect(opened.get_by_role("listitem")).to_have_count(1)
    opened.get_by_role("button", name="Close").click()
    expect(two.log).to_be_empty()
    two.page.reload()
    expect(titles(drawer(two))).to_have_text(["Where is Málaga?"])


def test_all_conversations_are_forgotten(two: ChatPage) -> None:
    opened = drawer(two)
    opened.get_by_role("button", name="Forget all").click()
    opened.get_by_role("button", name="Really forget all?").click()
    expect(opened.get_by_text("No conversations yet.")).to_be_visible()
    two.page.reload()
    expect(two.log).to_be_empty()
    databases = "indexedDB.databases().then((all) => all.map(({name}) => name))"
    assert two.page.evaluate(databases) == ["tokenstream"]
    expect(drawer(two).get_by_role("listitem")).to_have_count(0)


def test_a_reload_keeps_the_conversation_of_the_tab(two: ChatPage) -> None:
    two.page.reload()
    expect(two.question(1)).to_have_text("How does a rainbow form?")
    expect(two.answer(1)).to_have_text("Light and drops.")
    expect(two.figures(1)).to_have_text("general · 8 tokens · prompt 40, cached 30")


def test_a_reload_within_an_answer_keeps_what_had_come(page: Page, relay: Relay) -> None:
    relay.pieces = [b"Line after line of a story. "] * 2000
    chat = ChatPage(page, relay.url).open()
    chat.ask("Tell me a long story.")
    chat.wait_for("document.querySelector('.answer .text').textContent.length > 600")
    page.reload()
    expect(chat.question(1)).to_have_text("Tell me a long story.")
    assert len(chat.answer(1).text_content() or "") > 200
    expect(page.get_by_text("The page was closed before the answer was complete.")).to_be_visible()
    expect(chat.retry).to_be_visible()
    expect(chat.log).to_have_attribute("aria-busy", "false")
    relay.pieces = [b"The end.", TRAILER.encode()]
    expect(chat.context).to_be_enabled()
    page.get_by_role("button", name="Continue answer 1").click()
    expect(chat.answer(1)).to_contain_text("a story. The end.")


@pytest.mark.parametrize("kind", ["json", "md"])
def test_exported_conversations_can_be_imported(two: ChatPage, tmp_path: Path, kind: str) -> None:
    opened = drawer(two)
    button = "Export all" if kind == "json" else "Export as Markdown: Where is Málaga?"
    with two.page.expect_download() as download:
        opened.get_by_role("button", name=button).click()
    names = {"json": "conversations.json", "md": "Where-is-Málaga.md"}
    assert download.value.suggested_filename == names[kind]
    file = tmp_path / names[kind]
    download.value.save_as(file)
    if kind == "md":
        assert "It is in **Spain**." in file.read_text()
    opened.get_by_role("button", name="Forget all").click()
    opened.get_by_role("button", name="Really forget all?").click()
    expect(opened.get_by_role("listitem")).to_have_count(0)
    opened.locator("input[type=file]").set_input_files(file)
    count = 2 if kind == "json" else 1
    expect(opened.get_by_text(f"{count} conversation{'s' if count > 1 else ''} imported.")).to_be_visible()
    expect(opened.get_by_role("listitem")).to_have_count(count)
    opened.get_by_text("Where is Málaga?").click()
    expect(two.answer(2)).to_have_text("In Italy.")
    expect(two.question(2)).to_have_text("And Rome?")
    talk(two, "And Oslo?", "In Norway.")
    two.page.reload()
    expect(two.answer(3)).to_have_text("In Norway.")


ANSWER = {"id": "a", "context": "general", "state": "complete", "text": "<img src=x onerror=alert(1)>"}
LOOP = [{"id": id, "after": after, "text": "?", "answers": [ANSWER]} for id, after in (("q", ""), ("r", "a"))]
HOSTILE: dict[str, Any] = {
    "format": "tokenstream-conversations",
    "version": 1,
    "conversations": [
        {
            "id": "x",
            "updated": 1e300,
            "title": "<img src=x onerror=alert(1)>",
            "questions": [{"id": "q", "after": "", "text": "<b>?", "answers": [ANSWER], "chosen": 7}],
            "branches": {"": 5, "__proto__": "q"},
        }
    ],
}


def test_markup_in_an_imported_file_is_text(chat: ChatPage) -> None:
    opened = drawer(chat)
    file = {"name": "x.json", "mimeType": "application/json", "buffer": json.dumps(HOSTILE).encode()}
    opened.locator("input[type=file]").set_input_files(files=[file])  # type: ignore[list-item]
    opened.locator(".conversation .open").click()
    expect(chat.answer(1)).to_have_text("<img src=x onerror=alert(1)>")
    expect(chat.question(1)).to_have_text("<b>?")
    expect(chat.page.locator("main img[src=x], main b")).to_have_count(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "The file is neither JSON nor Markdown of this page."),
        ("{}", "The file has no conversations of this page."),
        ('{"format": "tokenstream-conversations", "conversations": [7]}', "has no questions"),
        (json.dumps({**HOSTILE, "conversations": [{"id": "x", "questions": LOOP}]}), "the same part twice"),
    ],
)
def test_other_files_are_rejected(chat: ChatPage, text: str, message: str) -> None:
    opened = drawer(chat)
    file = {"name": "x.json", "mimeType": "application/json", "buffer": text.encode()}
    opened.locator("input[type=file]").set_input_files(files=[file])  # type: ignore[list-item]
    expect(opened.get_by_text(message)).to_be_visible()
    expect(opened.get_by_role("listitem")).to_have_count(0)
