"""Reading of the stream: details, split characters, and markup as text."""

from __future__ import annotations

import json

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.ui.chat_page import ChatPage
from tests.ui.relay import Relay

DETAILS = {
    "finish_reason": "eos_token",
    "prompt_tokens": 37,
    "generated_tokens": 42,
    "time_to_first_token": 0.031,
    "tokens_per_second": 120.4,
}
TRAILER = "\x1e" + json.dumps(DETAILS)
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script><b>&amp;"

SPLIT = """async (pieces) => {
  const { DetailsSplitter } = await import('/ui/stream.js');
  const splitter = new DetailsSplitter();
  return [pieces.map((piece) => splitter.push(piece)), splitter.details()];
}"""


@pytest.mark.parametrize(
    ("pieces", "texts", "details"),
    [
        (["Par", "is", TRAILER], ["Par", "is", ""], DETAILS),
        (["Paris" + TRAILER], ["Paris"], DETAILS),
        (["Paris", *TRAILER], ["Paris"] + [""] * len(TRAILER), DETAILS),
        ([TRAILER], [""], DETAILS),
        (["Paris", "\n" + TRAILER], ["Paris", ""], DETAILS),
        (["Paris\n", TRAILER], ["Paris", ""], DETAILS),
        (["Paris\n", "\n", TRAILER], ["Paris", "\n", ""], DETAILS),
        (["Paris\n", "France\n\n", "Europe", TRAILER], ["Paris", "\nFrance\n", "\nEurope", ""], DETAILS),
        (["a\x1eb", "c", TRAILER], ["a\x1eb", "c", ""], DETAILS),
        (["a\x1e", "b", TRAILER], ["a", "\x1eb", ""], DETAILS),
        (["a\x1e{b", TRAILER], ["a", "\x1e{b"], DETAILS),
        (["a\x1e", "\x1e", TRAILER], ["a", "\x1e", "\x1e"], DETAILS),
        (["Paris", "\x1e" + '{"error": "no memory"}'], ["Paris", ""], {"error": "no memory"}),
        (["Paris"], ["Paris"], None),
        (["Paris", TRAILER[:-1]], ["Paris", ""], None),
        (["Paris", "\x1e"], ["Paris", ""], None),
        (["Paris", "\x1e{}"], ["Paris", ""], None),
    ],
)
def test_details_are_separated_from_text(
    chat: ChatPage, pieces: list[str], texts: list[str], details: dict[str, object] | None
) -> None:
    assert chat.page.evaluate(SPLIT, pieces) == [texts, details]


def test_characters_split_across_chunks_are_joined(page: Page, relay: Relay) -> None:
    text = "Grüße, 東京 🌊!"
    relay.pieces = [bytes([byte]) for byte in text.encode()] + [TRAILER[:9].encode(), TRAILER[9:].encode()]
    chat = ChatPage(page, relay.url).open()
    chat.ask("Greet Tokyo.")
    chat.wait_until_done()
    expect(chat.answer(1)).to_have_text(text)
    expect(chat.figures(1)).to_have_text(
        "general · 42 tokens · 120 tokens/s · first after 31 ms · prompt 37, cached 0"
    )
    assert len(set(chat.recorded("lengths"))) > 2


def test_an_empty_answer_has_a_remark(chat: ChatPage) -> None:
    chat.fake_answers(lambda route: route.fulfill(body=TRAILER))
    chat.ask("Say nothing.")
    chat.wait_until_done()
    expect(chat.answer(1)).to_have_text("The model generated no text.")


def test_markup_in_a_question_is_text(chat: ChatPage) -> None:
    chat.make_answers_short()
    chat.ask(MARKUP)
    chat.wait_until_done()
    expect(chat.question(1)).to_have_text(MARKUP)
    expect(chat.log.locator("img, script, b")).to_have_count(0)


def test_markup_in_an_answer_is_text(chat: ChatPage) -> None:
    chat.fake_answers(lambda route: route.fulfill(body=MARKUP + TRAILER))
    chat.ask("Show me some markup.")
    chat.wait_until_done()
    shown = MARKUP.replace("&amp;", "&")  # Markdown has character references
    expect(chat.answer(1)).to_have_text(shown)
    expect(chat.page.locator("#spoken")).to_have_text(shown)
    expect(chat.page.locator("body").locator("img[src=x], script, b")).to_have_count(0)


def test_markup_in_contexts_and_errors_is_text(
    page: Page, server_url: str, expected_messages: list[str]
) -> None:
    expected_messages.append("status of 400")
    contexts = {"default": MARKUP, "contexts": [MARKUP], "model": MARKUP, "with_documents": []}
    page.route("**/contexts", lambda route: route.fulfill(json=contexts))
    chat = ChatPage(page, server_url).open()
    error = {"error": MARKUP, "error_type": "validation"}
    chat.fake_answers(lambda route: route.fulfill(status=400, json=error))
    chat.ask("Refuse this.")
    expect(chat.errors).to_have_text(MARKUP)
    expect(page.locator("#model")).to_have_text(MARKUP)
    expect(chat.context).to_have_value(MARKUP)
    expect(page.locator("body").locator("img[src=x], script, b")).to_have_count(0)


def test_the_content_security_policy_blocks_inline_scripts(
    chat: ChatPage, expected_messages: list[str]
) -> None:
    header = httpx.get(chat.url).headers["content-security-policy"]
    policy = dict(part.strip().split(" ", 1) for part in header.split(";") if part.strip())
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["trusted-types"] == "dompurify"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    expected_messages.append("TrustedScript|Content Security Policy")
    with chat.page.expect_console_message(lambda message: "TrustedScript" in message.text):
        chat.page.evaluate("""() => {
          const script = document.createElement('script');
          script.append('window.ran = 1');
          document.body.append(script);
        }""")
    assert chat.page.evaluate("window.ran") is None


STOP_AT_FIRST_TEXT = """async () => {
  const { ask } = await import('/ui/stream.js');
  const controller = new AbortController();
  const texts = [];
  const onText = (text) => {
    texts.push(text);
    controller.abort();
  };
  const end = await ask({}, onText, controller.signal).then(() => 'complete', ({ name }) => name);
  return [texts, end];
}"""


def test_a_stop_wins_against_text_that_was_received_before(chat: ChatPage) -> None:
    chat.fake_answers(lambda route: route.fulfill(body="Paris" + TRAILER))
    assert chat.page.evaluate(STOP_AT_FIRST_TEXT) == [["Paris"], "AbortError"]
