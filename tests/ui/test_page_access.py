"""Accessibility of the web page: keyboard, screen readers, narrow screens, dark colours."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Page, expect

from tests.ui.chat_page import ChatPage
from tests.ui.colours import COLOURS, contrast, luminance

QUESTION = "Where is located Paris ?"
TRAILER = "\x1e" + json.dumps(
    {
        "finish_reason": "length",
        "prompt_tokens": 37,
        "generated_tokens": 42,
        "time_to_first_token": 0.031,
        "tokens_per_second": 120.4,
    }
)


# The focused element, and whether it or its form has an outline.
FOCUS = """() => {
  const node = document.activeElement;
  const outlines = [node, node.closest('form')].filter(Boolean).map((n) => getComputedStyle(n).outlineStyle);
  return [node.ariaLabel || node.id || node.textContent.trim(), outlines.some((style) => style !== 'none')];
}"""


def fill_conversation(
    chat: ChatPage, expected_messages: list[str], text: str = "Paris is in France."
) -> None:
    """Add a finished answer with a remark, and a failed one."""
    expected_messages.append("status of 500")
    chat.fake_answers(lambda route: route.fulfill(body=text + TRAILER))
    chat.ask(text)
    chat.wait_until_done()
    error = {"error": f"No memory is left. {text}", "error_type": "internal"}
    chat.reconnect()
    chat.fake_answers(lambda route: route.fulfill(status=500, json=error))
    chat.ask(text)
    chat.wait_until_done()
    chat.query.fill(text)


def test_a_conversation_needs_the_keyboard_only(chat: ChatPage) -> None:
    keyboard = chat.page.keyboard
    chat.make_answers_long()  # early: Chromium applies it to later requests only, after a delay
    expect(chat.query).to_be_focused()
    keyboard.type("Tell me")
    keyboard.press("Shift+Enter")
    keyboard.type("a long story.")
    expect(chat.log).to_be_empty()
    keyboard.press("Enter")
    expect(chat.question(1)).to_have_text("Tell me\na long story.")
    chat.wait_until_busy()
    keyboard.press("Escape")
    chat.wait_until_done()
    expect(chat.figures(1)).to_contain_text("stopped")
    expect(chat.query).to_be_focused()
    stops = []
    for key in ("Tab", *["Shift+Tab"] * 8):
        keyboard.press(key)
        stops.append(chat.page.evaluate(FOCUS))
    assert all(outlined for _, outlined in stops)
    of_turn = ["Copy answer 1", "Regenerate answer 1", "Continue answer 1", "Edit question 1"]
    assert [name for name, _ in stops] == ["context", "query", *of_turn, "clear", "Settings", "Conversations"]
    keyboard.press("Tab")
    keyboard.press("Tab")
    keyboard.press("Enter")
    expect(chat.log).to_be_empty()
    expect(chat.query).to_be_focused()


def test_the_keyboard_reaches_examples_and_stop(chat: ChatPage) -> None:
    keyboard = chat.page.keyboard
    chat.make_answers_long()
    keyboard.press("Shift+Tab")
    expect(chat.examples.last).to_be_focused()
    keyboard.press("Enter")
    chat.wait_until_busy()
    expect(chat.query).to_be_focused()
    keyboard.press("Tab")
    keyboard.press("Tab")
    expect(chat.stop).to_be_focused()
    assert chat.page.evaluate(FOCUS)[1]
    keyboard.press("Enter")
    chat.wait_until_done()
    expect(chat.figures(1)).to_contain_text("stopped")
    expect(chat.query).to_be_focused()


def test_enter_within_a_composition_does_not_send(chat: ChatPage) -> None:
    chat.change_requests(max_tokens=5)
    session = chat.page.context.new_cdp_session(chat.page)
    session.send("Input.imeSetComposition", {"text": "とうきょう", "selectionStart": 5, "selectionEnd": 5})
    chat.query.press("Enter")
    session.send("Input.insertText", {"text": "東京"})
    expect(chat.query).to_have_value(re.compile("東京"))
    expect(chat.log).to_be_empty()
    chat.query.press("Enter")
    expect(chat.question(1)).to_contain_text("東京")


def test_live_regions_have_the_state_and_the_answer_once(chat: ChatPage) -> None:
    chat.ask(QUESTION)
    chat.wait_until_done()
    texts = chat.recorded("status")
    assert len(chat.recorded("lengths")) > 2
    assert texts[0] == "Answering…"
    assert re.fullmatch(r"Answer complete, [\d,]+ tokens?, [\d,.]+ tokens per second\.", texts[1])
    assert len(texts) == 2
    assert chat.recorded("spoken") == [chat.answer(1).text_content()]
    expect(chat.page.locator("#spoken")).to_be_empty()


def test_an_empty_conversation_has_names_and_roles(chat: ChatPage) -> None:
    expect(chat.page.locator("body")).to_match_aria_snapshot("""
        - banner:
          - heading "Tokenstream" [level=1]
          - paragraph: /.+/
        - main:
          - region "What would you like to ask?":
            - heading "What would you like to ask?" [level=2]
            - list "Example questions":
              - listitem:
                - button /.+/
          - log "Conversation"
        - contentinfo:
          - form "Ask a question":
            - textbox "Your question"
            - combobox "Context":
              - option "general" [selected]
            - button "Send" [disabled]
        - status
    """)


def test_a_conversation_has_names_and_roles(chat: ChatPage, expected_messages: list[str]) -> None:
    fill_conversation(chat, expected_messages)
    expect(chat.page.locator("body")).to_match_aria_snapshot("""
        - banner:
          - button "New conversation"
        - main:
          - log "Conversation":
            - article "Question 1":
              - heading "Question 1" [level=2]
              - paragraph: Paris is in France.
            - article "Answer 1":
              - heading "Answer 1" [level=2]
              - paragraph: Paris is in France.
              - paragraph: The answer was cut at the limit of 42 tokens.
              - paragraph: /general · 42 tokens/
              - button "Continue answer 1"
              - button "Regenerate answer 1"
              - button "Copy answer 1"
            - article "Question 2":
              - button "Edit question 2"
            - article "Answer 2":
              - alert: No memory is left. Paris is in France.
              - button "Try again"
        - contentinfo:
          - form "Ask a question":
            - button "Send"
    """)


@pytest.mark.parametrize("width", [320, 375])
def test_a_narrow_screen_needs_no_horizontal_scrolling(
    chat: ChatPage, expected_messages: list[str], width: int
) -> None:
    page = chat.page
    page.set_viewport_size({"width": width, "height": 640})
    overflow = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(overflow) <= 0
    fill_conversation(chat, expected_messages, text="supercalifragilistic" * 20)
    assert page.evaluate(overflow) <= 0
    for control in (chat.clear, chat.context, chat.send, chat.query, chat.retry):
        box = control.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def colours(page: Page) -> list[tuple[str, str, str]]:
    return [tuple(row) for row in page.evaluate(COLOURS)]


def test_light_and_dark_colours_have_enough_contrast(chat: ChatPage, expected_messages: list[str]) -> None:
    backgrounds = {}
    fill_conversation(chat, expected_messages)
    for scheme in ("light", "dark"):
        chat.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        shown = colours(chat.page)
        assert len(shown) > 12
        low_contrast = [
            (text, contrast(front, back)) for text, front, back in shown if contrast(front, back) < 4.5
        ]
        assert low_contrast == []
        backgrounds[scheme] = chat.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert luminance(backgrounds["light"]) > 0.8
    assert luminance(backgrounds["dark"]) < 0.05


def test_dark_colours_of_an_empty_conversation_have_enough_contrast(chat: ChatPage) -> None:
    chat.page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    assert [row for row in colours(chat.page) if contrast(row[1], row[2]) < 4.5] == []


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_reduced_motion_stops_the_caret(chat: ChatPage, motion: str) -> None:
    chat.page.emulate_media(reduced_motion=motion)
    chat.make_answers_long()
    chat.ask(QUESTION)
    chat.wait_until_busy()
    caret = (
        "getComputedStyle(document.querySelector('.answer .text > p:last-child'), '::after').animationName"
    )
    assert (chat.page.evaluate(caret) == "none") == (motion == "reduce")
    chat.stop.click()
    chat.wait_until_done()
