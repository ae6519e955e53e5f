"""The web page: questions, streaming, stop, contexts, and the conversation."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.polling import figure, wait_for
from tests.ui.chat_page import ChatPage
from tests.ui.relay import Relay

QUESTION = "Where is located Paris ?"


def test_an_answer_grows_while_it_streams(chat: ChatPage) -> None:
    chat.change_requests(max_tokens=60)
    chat.ask(QUESTION)
    chat.wait_until_done()
    lengths = chat.recorded("lengths")
    assert len(set(lengths) - {0}) >= 2, "the text is in one piece"
    assert lengths == sorted(lengths), "the text became shorter"


def test_a_finished_answer_has_figures(chat: ChatPage) -> None:
    chat.make_answers_short()
    chat.ask(QUESTION)
    chat.wait_until_done()
    expect(chat.figures(1)).to_have_text(
        re.compile(
            r"^general · [\d,]+ tokens? · [\d,.]+ tokens/s · first after [\d,.]+\s(ms|s) · "
            r"prompt \d+, cached \d+$"
        )
    )


def test_the_text_equals_that_of_token_stream(chat: ChatPage) -> None:
    chat.change_requests(temperature=0, max_tokens=24)
    chat.ask(QUESTION)
    chat.wait_until_done()
    body = {"query": QUESTION, "context": "general", "temperature": 0, "max_tokens": 24}
    plain = httpx.post(f"{chat.url}/token_stream", json=body, timeout=60).raise_for_status().text
    assert (chat.answer(1).text_content() or "").strip() == plain


def test_an_answer_at_the_token_limit_has_a_remark(chat: ChatPage) -> None:
    chat.change_requests(ignore_eos=True, max_tokens=5)
    chat.ask(QUESTION)
    chat.wait_until_done()
    expect(chat.log.get_by_text("The answer was cut at the limit of 5 tokens.")).to_be_visible()
    expect(chat.figures(1)).to_contain_text("5 tokens ·")


@pytest.mark.parametrize("way", ["button", "escape", "new conversation"])
def test_stop_ends_the_answer_on_the_server(chat: ChatPage, way: str) -> None:
    chat.make_answers_long()
    before = figure(chat.url, "generated_tokens_total")
    chat.ask("Tell me a long story.")
    chat.wait_until_busy()
    wait_for(lambda: figure(chat.url, "running_requests") == 1)
    if way == "button":
        chat.stop.click()
    elif way == "escape":
        chat.page.keyboard.press("Escape")
    else:
        chat.clear.click()
    chat.wait_until_done()
    wait_for(lambda: figure(chat.url, "running_requests") == 0)
    assert figure(chat.url, "generated_tokens_total") - before < 1800
    if way == "new conversation":
        expect(chat.log).to_be_empty()
    else:
        expect(chat.figures(1)).to_have_text(re.compile(r"^general · stopped after "))
        expect(chat.answer(1)).not_to_be_empty()
        assert chat.recorded("status")[-1] == "Answer stopped."
    expect(chat.errors).to_have_count(0)


def test_a_question_after_a_stop_is_answered(chat: ChatPage) -> None:
    chat.make_answers_long()
    chat.ask("Tell me a long story.")
    chat.wait_until_busy()
    chat.stop.click()
    chat.reconnect()
    chat.make_answers_short()
    chat.ask(QUESTION)
    chat.wait_until_done()
    expect(chat.figures(2)).to_contain_text("tokens/s")


def test_a_double_click_on_send_does_not_stop(chat: ChatPage) -> None:
    chat.make_answers_long()
    chat.query.fill("Tell me a long story.")
    chat.send.dblclick()
    chat.wait_until_busy()
    expect(chat.stop).to_be_visible()
    chat.stop.click()
    expect(chat.figures(1)).to_contain_text("stopped")


def test_the_request_has_the_selected_context(chat: ChatPage) -> None:
    served = httpx.get(f"{chat.url}/contexts").json()
    expect(chat.context).to_have_value(served["default"])
    assert chat.context.locator("option").all_text_contents() == served["contexts"]
    chat.make_answers_short()
    chat.context.select_option("sql")
    chat.ask("List the names of all customers.")
    chat.wait_until_done()
    question = {"role": "user", "content": "List the names of all customers."}
    assert chat.sent == [{"messages": [question], "context": "sql", "details": True}]
    expect(chat.answer(1)).not_to_be_empty()
    expect(chat.figures(1)).to_contain_text("sql · ")


def test_the_conversation_is_kept_until_a_new_one(chat: ChatPage) -> None:
    expect(chat.clear).to_be_hidden()
    chat.make_answers_short()
    for question in (QUESTION, "Why is the sky blue?"):
        chat.ask(question)
        chat.wait_until_done()
    expect(chat.question(1)).to_have_text(QUESTION)
    expect(chat.question(2)).to_have_text("Why is the sky blue?")
    for position in (1, 2):
        expect(chat.answer(position)).not_to_be_empty()
    chat.clear.click()
    expect(chat.log).to_be_empty()
    expect(chat.examples.first).to_be_visible()
    expect(chat.query).to_be_focused()


@pytest.mark.parametrize("is_small", [True, False])
def test_a_small_model_is_told(page: Page, server_url: str, is_small: bool) -> None:
    if not is_small:
        changed = {"is_small": False}
        page.route("**/contexts", lambda route: route.fulfill(json={**route.fetch().json(), **changed}))
    chat = ChatPage(page, server_url).open()
    note = chat.page.get_by_text("This model is small and often wrong: check its facts, sums and queries.")
    expect(note).to_be_visible(visible=is_small)


def test_a_click_on_an_example_sends_it(chat: ChatPage) -> None:
    chat.make_answers_short()
    text = chat.examples.first.text_content() or ""
    chat.examples.first.click()
    chat.wait_until_done()
    expect(chat.question(1)).to_have_text(text)
    expect(chat.answer(1)).not_to_be_empty()


def test_examples_depend_on_the_context(chat: ChatPage) -> None:
    before = chat.examples.all_text_contents()
    chat.context.select_option("sql")
    after = chat.examples.all_text_contents()
    assert before
    assert after
    assert not set(before) & set(after)


def test_the_page_follows_the_text_unless_scrolled_up(page: Page, relay: Relay) -> None:
    relay.pieces = [b"Line after line of a long story\n"] * 2000
    chat = ChatPage(page, relay.url).open()
    chat.ask("Tell me a long story.")
    length = "document.querySelector('.answer .text').textContent.length"
    at_end = "document.documentElement.scrollHeight - innerHeight - scrollY < 48"
    chat.wait_for(f"scrollY > 400 && {at_end}")
    page.mouse.move(600, 200)
    page.mouse.wheel(0, -300)
    expect(chat.latest).to_be_visible()
    position, before = page.evaluate(f"[scrollY, {length}]")
    chat.wait_for(f"{length} > {before} + 400")
    assert page.evaluate("scrollY") == position
    chat.latest.click()
    chat.wait_for(f"scrollY > {position} && {at_end}")
    expect(chat.latest).to_be_hidden()
    chat.stop.click()


def test_the_copy_button_copies_the_answer(chat: ChatPage) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.make_answers_short()
    chat.ask(QUESTION)
    chat.wait_until_done()
    chat.page.get_by_role("button", name="Copy answer 1").click()
    expect(chat.status).to_have_text("Copied.")
    assert (
        chat.page.evaluate("navigator.clipboard.readText()") == (chat.answer(1).text_content() or "").strip()
    )


def test_the_copy_button_works_without_the_clipboard_interface(page: Page, server_url: str) -> None:
    """navigator.clipboard does not exist over plain HTTP from another machine."""
    page.add_init_script("""
        Object.defineProperty(navigator, 'clipboard', {value: undefined});
        addEventListener('copy', (event) => { window.copied = event.clipboardData.getData('text/plain'); });
    """)
    chat = ChatPage(page, server_url).open()
    chat.fake_answers(
        lambda route: route.fulfill(body='Paris,\n  France\n\x1e{"finish_reason": "eos_token"}')
    )
    chat.ask(QUESTION)
    chat.wait_until_done()
    page.get_by_role("button", name="Copy answer 1").click()
    expect(chat.status).to_have_text("Copied.")
    assert page.evaluate("copied") == "Paris,\n  France"
