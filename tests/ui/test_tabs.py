"""Two tabs that show one conversation: no turn is lost, and each tab shows those of the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, Route, expect

from tests.ui.chat_page import ChatPage
from tests.ui.test_history import TRAILER, drawer, talk, titles


@pytest.fixture
def other(chat: ChatPage) -> Iterator[ChatPage]:
    """Another tab of the same browser with the conversation of `chat`, which has one turn."""
    talk(chat, "Where is Rome?", "In Italy.")
    page = chat.page.context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    other = ChatPage(page, chat.url).open()
    drawer(other).get_by_text("Where is Rome?").click()
    expect(other.answer(1)).to_have_text("In Italy.")
    yield other
    page.close()
    assert problems == []


class Held:
    """Answers of a tab that wait for `release`."""

    def __init__(self, chat: ChatPage, text: str) -> None:
        self._text = text
        self._routes: list[Route] = []
        chat.page.unroute("**/token_stream")
        chat.fake_answers(lambda route: self._routes.append(route))

    def release(self) -> None:
        self._routes.pop().fulfill(body=self._text + TRAILER)


def reloaded(page: Page) -> None:
    page.reload()
    expect(page.get_by_role("combobox", name="Context", exact=True)).to_be_enabled()


def test_turns_of_another_tab_are_shown_and_kept(chat: ChatPage, other: ChatPage) -> None:
    talk(other, "And Oslo?", "In Norway.")
    expect(chat.answer(2)).to_have_text("In Norway.")
    talk(chat, "And Lima?", "In Peru.")
    expect(other.question(3)).to_have_text("And Lima?")
    expect(other.answer(3)).to_have_text("In Peru.")
    reloaded(chat.page)
    for position, text in enumerate(("In Italy.", "In Norway.", "In Peru."), 1):
        expect(chat.answer(position)).to_have_text(text)


def test_simultaneous_questions_become_versions(chat: ChatPage, other: ChatPage) -> None:
    first, second = Held(chat, "In Norway."), Held(other, "In Peru.")
    chat.page.evaluate("BroadcastChannel.prototype.postMessage = () => {}")  # as if messages came too late
    chat.ask("And Oslo?")
    other.ask("And Lima?")
    second.release()
    other.wait_until_done()
    first.release()
    chat.wait_until_done()
    pager = chat.page.get_by_role("article", name="Question 2").locator(".pager")
    expect(pager).to_contain_text("2/2")  # the versions are merged when they are stored
    reloaded(chat.page)
    expect(pager).to_contain_text("2/2")
    expect(chat.question(2)).to_have_text("And Lima?")
    expect(chat.answer(2)).to_have_text("In Peru.")
    pager.get_by_role("button", name="Previous question").click()
    expect(chat.answer(2)).to_have_text("In Norway.")
    expect(chat.answer(1)).to_have_text("In Italy.")
    reloaded(other.page)
    expect(other.page.get_by_role("article", name="Question 2").locator(".pager")).to_contain_text("/2")


def test_a_running_answer_of_another_tab_is_told(chat: ChatPage, other: ChatPage) -> None:
    held = Held(other, "In Norway.")
    other.ask("And Oslo?")
    expect(chat.answer(2)).to_have_text("The answer runs in another tab.")
    expect(chat.figures(2)).to_have_text("general · running in another tab")
    expect(chat.retry).to_be_hidden()
    held.release()
    expect(chat.answer(2)).to_have_text("In Norway.")
    other.page.get_by_role("button", name="Regenerate answer 2").click()
    held.release()
    expect(chat.page.get_by_role("article", name="Answer 2").locator(".pager")).to_contain_text("2/2")


def test_a_name_of_another_tab_stays_and_a_deleted_conversation_does_not_return(
    chat: ChatPage, other: ChatPage
) -> None:
    opened = drawer(other)
    opened.get_by_role("button", name="Rename Where").click()
    opened.get_by_role("textbox", name="New title").fill("Capitals")
    opened.get_by_role("textbox", name="New title").press("Enter")
    expect(titles(opened)).to_have_text(["Capitals"])
    opened.get_by_role("button", name="Close").click()
    talk(chat, "And Oslo?", "In Norway.")
    opened = drawer(other)
    expect(titles(opened)).to_have_text(["Capitals"])
    opened.get_by_role("button", name="Delete Capitals").click()
    opened.get_by_role("button", name="Sure?").click()
    expect(chat.log).to_be_empty()
    reloaded(chat.page)
    expect(chat.log).to_be_empty()
    expect(drawer(chat).get_by_text("No conversations yet.")).to_be_visible()
