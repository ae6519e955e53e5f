"""Sources of an answer, and the switch for documents."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, Route, expect

from tests.conftest import ROOT, Server
from tests.ui.chat_page import ChatPage
from tests.ui.colours import COLOURS, contrast

COMMON = {"context": "general", "details": True}
QUESTION = "When does the Wren Bridge in Callowmere open?"
MARKUP = "<img src=x onerror=alert(1)><b>bold</b> &amp;\n\n\ttabs & lines"
FIGURES = {
    "finish_reason": "eos_token",
    "prompt_tokens": 37,
    "generated_tokens": 42,
    "time_to_first_token": 0.031,
    "tokens_per_second": 120.4,
}


def source(text: str = "It opens at 06:25.", **fields: Any) -> dict[str, Any]:
    passage = {"file": "callowmere.md", "heading": "A Guide › Bridges", "page": None, "position": 2}
    return {**passage, "text": text, "cosine": 0.7812, "score": 0.0325, **fields}


SOURCES = [
    source(),
    source("Page three.", file="plans/flood.pdf", heading="", page=3, cosine=0.5),
    source(MARKUP, file=MARKUP, heading=MARKUP, cosine=-0.02),
]


@pytest.fixture
def documents(page: Page, server_url: str) -> ChatPage:
    """The web page of a server with documents."""

    def with_knowledge(route: Route) -> None:
        served = route.fetch()
        route.fulfill(response=served, json={**served.json(), "with_documents": ["general"]})

    page.route("**/contexts", with_knowledge)
    return ChatPage(page, server_url).open()


def use_documents(chat: ChatPage) -> Locator:
    return chat.page.get_by_role("switch", name="Use my documents")


def cards(chat: ChatPage, position: int) -> Locator:
    return chat.page.get_by_role("article", name=f"Answer {position}").get_by_role("group")


def answer_with(chat: ChatPage, sources: list[dict[str, Any]] | None) -> None:
    """Answer a question with these sources; None: without documents."""
    details = FIGURES if sources is None else {**FIGURES, "sources": sources}
    chat.fake_answers(lambda route: route.fulfill(body=f"At 06:25.\x1e{json.dumps(details)}"))
    chat.ask(QUESTION)
    chat.wait_until_done()


def test_cards_have_file_heading_page_and_text(chat: ChatPage) -> None:
    answer_with(chat, SOURCES[:2])
    first, second = cards(chat, 1).all()
    expect(first.locator("summary")).to_have_text(
        "callowmere.md A Guide › Bridges 78% similar", use_inner_text=True
    )
    expect(second.locator("summary")).to_have_text("plans/flood.pdf page 3 50% similar", use_inner_text=True)
    expect(first.get_by_text("It opens at 06:25.")).to_be_hidden()
    first.locator("summary").click()
    expect(first.get_by_text("It opens at 06:25.")).to_be_visible()
    expect(second.get_by_text("Page three.")).to_be_hidden()
    first.locator("summary").click()
    expect(first.get_by_text("It opens at 06:25.")).to_be_hidden()


def test_markup_in_sources_is_text(chat: ChatPage) -> None:
    answer_with(chat, SOURCES)
    card = cards(chat, 1).last
    card.locator("summary").click()
    assert card.locator("p").text_content() == MARKUP
    expect(card.locator("summary")).to_contain_text(MARKUP)
    expect(card.locator("summary")).to_contain_text("0% similar")
    expect(chat.page.locator("body").locator("img[src=x], b")).to_have_count(0)


def test_cards_can_be_opened_by_keyboard(chat: ChatPage) -> None:
    answer_with(chat, SOURCES[:2])
    keyboard = chat.page.keyboard
    for _ in range(4):  # to the copy button, the regenerate button, the last card and the first card
        keyboard.press("Shift+Tab")
    first = cards(chat, 1).first
    expect(first.locator("summary")).to_be_focused()
    assert chat.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    keyboard.press("Enter")
    expect(first.get_by_text("It opens at 06:25.")).to_be_visible()
    keyboard.press("Space")
    expect(first.get_by_text("It opens at 06:25.")).to_be_hidden()


def test_live_regions_have_the_number_of_sources(chat: ChatPage) -> None:
    answer_with(chat, SOURCES)
    assert chat.recorded("status")[-1] == "Answer complete, 42 tokens, 120 tokens per second, 3 sources."
    expect(chat.log).to_match_aria_snapshot("""
        - article "Answer 1":
          - heading "Answer 1" [level=2]
          - paragraph: At 06:25.
          - heading "Sources" [level=3]
          - list:
            - listitem:
              - group: /callowmere.md A Guide › Bridges 78% similar/
            - listitem:
              - group: /plans\\/flood.pdf page 3 50% similar/
            - listitem
          - paragraph: /general/
          - button "Regenerate answer 1"
          - button "Copy answer 1"
    """)


def test_an_answer_without_documents_has_no_sources(chat: ChatPage) -> None:
    answer_with(chat, None)
    expect(chat.page.get_by_text("Sources")).to_be_hidden()
    assert chat.recorded("status")[-1] == "Answer complete, 42 tokens, 120 tokens per second."


def test_an_answer_tells_that_documents_wait(chat: ChatPage) -> None:
    details = {**FIGURES, "sources": SOURCES, "sources_waiting": 2}
    chat.fake_answers(lambda route: route.fulfill(body=f"At 06:25.\x1e{json.dumps(details)}"))
    chat.ask(QUESTION)
    chat.wait_until_done()
    expect(chat.page.get_by_text("2 documents not indexed yet")).to_be_visible()


def test_the_switch_is_hidden_without_documents(chat: ChatPage) -> None:
    expect(use_documents(chat)).to_be_hidden()
    answer_with(chat, None)
    chat.reconnect()
    chat.make_answers_short()
    chat.ask(QUESTION)
    chat.wait_until_done()
    assert {name: value for name, value in chat.sent[0].items() if name != "messages"} == COMMON


def test_the_switch_is_hidden_in_contexts_without_documents(documents: ChatPage) -> None:
    expect(use_documents(documents)).to_be_visible()
    documents.context.select_option("sql")
    expect(use_documents(documents)).to_be_hidden()
    documents.context.select_option("general")
    expect(use_documents(documents)).to_be_visible()


def test_the_switch_disables_documents(documents: ChatPage) -> None:
    sent: list[Any] = []

    def answer(route: Route) -> None:
        sent.append(route.request.post_data_json)
        route.fulfill(body=f"Yes.\x1e{json.dumps(FIGURES)}")

    documents.fake_answers(answer)
    switch = use_documents(documents)
    expect(switch).to_be_checked()
    documents.ask("With?")
    documents.wait_until_done()
    switch.uncheck()
    documents.ask("Without?")
    documents.wait_until_done()
    switch.focus()
    documents.page.keyboard.press("Space")
    expect(switch).to_be_checked()
    documents.ask("With again?")
    documents.wait_until_done()
    assert [request.get("knowledge") for request in sent] == [None, False, None]


@pytest.mark.parametrize("width", [320, 375])
def test_a_narrow_screen_needs_no_horizontal_scrolling(documents: ChatPage, width: int) -> None:
    page = documents.page
    page.set_viewport_size({"width": width, "height": 640})
    long = "supercalifragilistic" * 10
    answer_with(documents, [source(long, file=f"{long}.md", heading=long), *SOURCES])
    for card in cards(documents, 1).all():
        card.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    for control in (use_documents(documents), documents.context, documents.send):
        box = control.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_cards_have_enough_contrast(documents: ChatPage, scheme: Any) -> None:
    answer_with(documents, SOURCES)
    for card in cards(documents, 1).all():
        card.locator("summary").click()
    documents.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    shown = documents.page.evaluate(COLOURS)
    assert {"callowmere.md", "It opens at 06:25.", "78% similar"} <= {text for text, *_ in shown}
    assert [text for text, front, back in shown if contrast(front, back) < 4.5] == []


def test_an_answer_of_the_server_has_its_source(
    start_server: Callable[..., Server], page: Page, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(ROOT / "data" / "callowmere.md", folder)
    index = str(tmp_path / "index")
    server = start_server(KNOWLEDGE="on", DATA_PATH=str(folder), KNOWLEDGE_INDEX=index).wait_until()
    chat = ChatPage(page, server.url).open()
    chat.ask(QUESTION)
    chat.wait_until_done()
    expect(chat.answer(1)).to_contain_text("06:25")
    card = cards(chat, 1).first
    expect(card.locator("summary")).to_have_text(
        re.compile(r"callowmere\.md A Newcomer's Guide to Callowmere › Bridges\s+[5-9]\d% similar"),
        use_inner_text=True,
    )
    card.locator("summary").click()
    passage = card.get_by_text("The Wren Bridge in Callowmere opens at 06:25 every morning.")
    expect(passage).to_be_visible()
    chat.clear.click()
    use_documents(chat).uncheck()
    chat.ask(QUESTION)
    chat.wait_until_done()
    expect(chat.answer(1)).not_to_be_empty()
    expect(chat.answer(1)).not_to_contain_text("06:25")
    expect(cards(chat, 1)).to_have_count(0)


def pixels(shown: Locator) -> Image.Image:
    return Image.open(io.BytesIO(shown.screenshot(animations="disabled"))).convert("RGB")


def test_an_open_card_has_round_corners_and_a_full_bar(chat: ChatPage) -> None:
    answer_with(chat, SOURCES[:2])
    card = cards(chat, 1).first
    card.locator("summary").click()
    chat.page.emulate_media(reduced_motion="reduce")
    card.locator("summary").hover()
    picture = pixels(card)
    ground = pixels(chat.log).getpixel((1, 1))
    right, bottom = picture.width - 1, picture.height - 1
    corners = {picture.getpixel((x, y)) for x, y in ((2, 2), (right - 2, 2), (2, bottom - 2))}
    assert corners == {ground}, "the background of the hovered summary is not rounded"
    bar = pixels(card.locator("meter"))
    column = {bar.getpixel((bar.width // 2, y)) for y in range(1, bar.height - 1)}
    assert len(column) == 1, "the value has not the height of the bar"
    assert column != {bar.getpixel((bar.width - 4, bar.height // 2))}
