"""The web page has no violations of axe-core's rules, and fits narrow, zoomed and right-to-left views."""

from __future__ import annotations

import importlib
import json
import os
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.ui.chat_page import ChatPage
from tests.ui.relay import Relay
from tests.ui.test_markdown import ANSWER
from tests.ui.test_sources import SOURCES

CALL = '<tool_call>\n{"name": "look_up", "arguments": {"city": "Paris"}}\n</tool_call>'
FIGURES: dict[str, Any] = {
    "finish_reason": "length",
    "prompt_tokens": 40,
    "cached_tokens": 30,
    "generated_tokens": 8,
    "sources": SOURCES,
    "probabilities": {"good": 0.7, "bad": 0.3},
}
THOUGHT = "<think>\nPlants.\n</think>\n\n"
SIZES = {"desktop": (1280, 800), "phone": (390, 844), "zoom of 200 %": (640, 400)}
SCHEMES: tuple[Any, ...] = ("light", "dark")


def violations(page: Page) -> list[str]:
    try:
        axe = importlib.import_module("axe_playwright_python.sync_playwright").Axe()
    except ImportError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip("axe-playwright-python is not installed: run make install .venv/.dev")
    options = {"resultTypes": ["violations"]}
    found = axe.run(page, options=options).response["violations"]
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]


def check(page: Page) -> None:
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        assert violations(page) == []


def answered(page: Page, url: str, text: str, **figures: Any) -> ChatPage:
    """The page with an answer to "Show me."."""
    page.route("**/contexts", lambda route: route.fulfill(json={**route.fetch().json(), "thinks": True}))
    chat = ChatPage(page, url).open()
    body = f"{THOUGHT}{text}\n\x1e{json.dumps({**FIGURES, **figures})}"
    chat.fake_answers(lambda route: route.fulfill(body=body))
    chat.ask("Show me.")
    chat.wait_until_done()
    return chat


def fits(page: Page) -> bool:
    """Whether nothing needs horizontal scrolling."""
    overflow: int = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return overflow <= 0


def test_an_empty_page_and_the_settings_have_no_violations(chat: ChatPage) -> None:
    check(chat.page)
    chat.page.get_by_role("button", name="Settings").click()
    check(chat.page)


def test_a_conversation_and_its_drawer_have_no_violations(
    page: Page, server_url: str, expected_messages: list[str]
) -> None:
    expected_messages.append("status of 500")
    chat = answered(page, server_url, f"{ANSWER}\n{CALL}")
    page.get_by_role("button", name="Regenerate answer 1").click()
    chat.wait_until_done()
    chat.reconnect()
    failure = {"error": "No memory is left.", "error_type": "internal"}
    chat.fake_answers(lambda route: route.fulfill(status=500, json=failure))
    chat.ask("Fail.")
    chat.wait_until_done()
    for summary in page.locator(".turn summary").all():
        if summary.is_visible():
            summary.click()
    expect(page.locator(".hljs-keyword").first).to_be_visible()
    check(page)
    page.get_by_role("button", name="Edit question 1").click()
    page.get_by_role("button", name="Conversations", exact=True).click()
    page.get_by_role("button", name="Rename").first.click()
    page.get_by_role("button", name="Delete").first.click()
    check(page)


def test_a_running_answer_has_no_violations(page: Page, relay: Relay) -> None:
    relay.pieces = [b"word "] * 2000
    chat = ChatPage(page, relay.url).open()
    chat.ask("Count.")
    chat.wait_until_busy()
    check(page)
    chat.stop.click()


@pytest.mark.parametrize("size", SIZES)
def test_every_size_fits(page: Page, server_url: str, size: str) -> None:
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    wide = (
        f"| {'column | ' * 30}\n| {'--- | ' * 30}\n| {'cell | ' * 30}\n\n```python\n{'x = 1; ' * 60}\n```\n"
    )
    chat = answered(page, server_url, f"{ANSWER}\n{wide}\n{CALL}\n\n{'long' * 90}")
    assert fits(page)
    for control in (chat.query, chat.context, chat.send, page.locator("#open-settings"), chat.clear):
        control.scroll_into_view_if_needed()  # the header scrolls away in low windows
        expect(control).to_be_in_viewport()
    scroll = "(node) => [node.scrollWidth > node.clientWidth, getComputedStyle(node).overflowX]"
    assert page.locator(".table").last.evaluate(scroll) == [True, "auto"]
    assert page.locator(".code pre").last.evaluate(scroll) == [True, "auto"]
    for name in ("Conversations", "Settings"):
        page.get_by_role("button", name=name, exact=True).click()
        drawer = page.get_by_role("dialog", name=name)
        expect(drawer.get_by_role("button", name="Close")).to_be_in_viewport()
        last = drawer.get_by_role("button", name="Forget all" if name == "Conversations" else "Defaults")
        last.scroll_into_view_if_needed()
        expect(last).to_be_in_viewport()
        assert fits(page)
        page.keyboard.press("Escape")


def test_right_to_left_text_is_aligned_right(page: Page, server_url: str) -> None:
    arabic = "مرحبا بالعالم"
    chat = answered(
        page,
        server_url,
        f"{arabic}\n\n- {arabic}\n\n  {arabic}\n\n> {arabic}\n\n| {arabic} |\n| --- |\n| {arabic} |\n",
    )
    chat.query.fill(arabic)
    direction = "(node) => getComputedStyle(node).direction"
    for selector in (
        ".answer .text > p",
        ".answer ul",
        ".answer li p",
        ".answer blockquote",
        ".answer td",
        "#query",
    ):
        assert page.locator(selector).first.evaluate(direction) == "rtl", selector
    chat.query.press("Enter")
    chat.wait_until_done()
    assert chat.question(2).evaluate(direction) == "rtl"
    assert fits(page)


def test_the_drawers_need_the_keyboard_only(page: Page, server_url: str) -> None:
    chat = answered(page, server_url, "Yes.")
    keyboard = page.keyboard
    page.get_by_role("button", name="Conversations", exact=True).focus()
    keyboard.press("Enter")
    opened = page.get_by_role("dialog", name="Conversations")
    expect(opened).to_be_visible()
    names = []
    for _ in range(12):
        keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent"))
        assert page.evaluate("document.activeElement.closest('main, footer')") is None
    assert {"Search conversations", "Rename Show me.", "Delete Show me.", "Forget all"} <= set(names)
    keyboard.press("Escape")
    expect(opened).to_be_hidden()
    expect(page.get_by_role("button", name="Conversations", exact=True)).to_be_focused()
    expect(chat.answer(1)).to_have_text("Yes.")
