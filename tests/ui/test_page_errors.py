"""Errors on the web page, and their recovery."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.ui.chat_page import ChatPage
from tests.ui.relay import CUT, Relay

QUESTION = "Where is located Paris ?"
CUT_MESSAGE = "The connection broke before the answer was complete."


@pytest.mark.parametrize("fields", [{"context": "nowhere"}, {"max_tokens": -1}, {"unknown": 1}])
def test_a_rejected_request_shows_the_error_message(
    chat: ChatPage, expected_messages: list[str], fields: dict[str, Any]
) -> None:
    expected_messages.append("status of 4")
    body = {"query": QUESTION, "context": "general", "details": True, **fields}
    message = httpx.post(f"{chat.url}/token_stream", json=body).json()["error"]
    assert next(iter(fields)) in message or "nowhere" in message
    chat.change_requests(**fields)
    chat.ask(QUESTION)
    expect(chat.errors).to_have_text(message.removeprefix("context: "))
    expect(chat.question(1)).to_have_text(QUESTION)
    chat.wait_until_done()
    chat.reconnect()
    chat.make_answers_short()
    chat.retry.click()
    chat.wait_until_done()
    expect(chat.errors).to_have_count(0)
    expect(chat.figures(1)).to_contain_text("tokens/s")


def test_an_error_without_json_shows_the_status(chat: ChatPage, expected_messages: list[str]) -> None:
    expected_messages.append("status of 502")
    chat.fake_answers(lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    chat.ask(QUESTION)
    expect(chat.errors).to_have_text("The server answered 502 Bad Gateway.")


def test_an_error_within_an_answer_keeps_the_text(chat: ChatPage) -> None:
    failure = json.dumps({"error": "The model ran out of memory.", "error_type": "generation"})
    chat.fake_answers(lambda route: route.fulfill(body=f"Paris is\x1e{failure}"))
    chat.ask(QUESTION)
    expect(chat.errors).to_have_text("The model ran out of memory.")
    expect(chat.answer(1)).to_have_text("Paris is")
    expect(chat.figures(1)).to_have_text("general · failed")


def test_a_lost_network_is_reported_and_retry_works(chat: ChatPage, expected_messages: list[str]) -> None:
    expected_messages.append("ERR_INTERNET_DISCONNECTED")
    chat.page.context.set_offline(True)
    chat.ask(QUESTION)
    expect(chat.errors).to_have_text("The server cannot be reached.")
    expect(chat.notice).to_have_text("The server cannot be reached. Trying again…")
    chat.page.context.set_offline(False)
    expect(chat.notice).to_be_hidden()
    chat.make_answers_short()
    chat.retry.click()
    chat.wait_until_done()
    expect(chat.answer(1)).not_to_be_empty()
    expect(chat.errors).to_have_count(0)


@pytest.mark.parametrize("ending", [CUT, b""], ids=["connection lost", "ended without details"])
def test_a_truncated_stream_is_reported_and_retry_works(
    page: Page, relay: Relay, expected_messages: list[str], ending: bytes | None
) -> None:
    expected_messages.append("ERR_INCOMPLETE_CHUNKED_ENCODING")
    relay.pieces = [b"Paris ", b"is", ending]
    chat = ChatPage(page, relay.url).open()
    chat.ask(QUESTION)
    expect(chat.errors).to_have_text(CUT_MESSAGE)
    expect(chat.answer(1)).to_have_text("Paris is")
    expect(chat.send).to_be_visible()
    relay.pieces = [b"Paris is in France.", b'\x1e{"finish_reason": "eos_token", "generated_tokens": 5}']
    chat.retry.click()
    expect(chat.answer(1)).to_have_text("Paris is in France.")
    expect(chat.errors).to_have_count(0)


def reject(route: Route, status: int, error_type: str, text: str) -> None:
    route.fulfill(status=status, json={"error": text, "error_type": error_type})


def test_a_busy_server_is_asked_again(chat: ChatPage, expected_messages: list[str]) -> None:
    expected_messages.append("status of 429")
    text = "the server is busy: 3 requests run or wait (MAX_CONCURRENT_REQUESTS=3); try again in 2 s"
    body = {"error": text, "error_type": "overloaded"}
    chat.make_answers_short()
    chat.page.route(
        "**/token_stream",
        lambda route: route.fulfill(status=429, headers={"Retry-After": "2"}, json=body),
        times=1,
    )
    chat.ask(QUESTION)
    expect(chat.figures(1)).to_have_text("Busy, 3 before you, retrying in 2\u00a0s")
    expect(chat.figures(1)).to_have_text("Busy, 3 before you, retrying in 1\u00a0s")
    chat.wait_until_done()
    expect(chat.errors).to_have_count(0)
    expect(chat.figures(1)).to_contain_text("tokens/s")
    assert chat.recorded("status")[1] == "Busy, 3 before you, retrying in 2\u00a0s."


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("the server is busy: 9 requests run or wait", "Busy, 9 before you, retrying in 1\u00a0s"),
        (
            "key ada has used its 2000 tokens per minute; try again in 1 s",
            "This key has used its tokens of this minute, retrying in 1\u00a0s",
        ),
    ],
    ids=["server", "key"],
)
def test_waiting_for_a_busy_server_can_be_stopped(
    chat: ChatPage, expected_messages: list[str], message: str, words: str
) -> None:
    expected_messages.append("status of 429")
    chat.fake_answers(lambda route: reject(route, 429, "overloaded", message))
    chat.ask(QUESTION)
    expect(chat.figures(1)).to_have_text(words)
    for _ in range(2):  # two more attempts
        with chat.page.expect_request("**/token_stream"):
            pass
    assert chat.recorded("status") == ["Answering…", f"{words}."]  # screen readers announce it once
    chat.page.keyboard.press("Escape")
    chat.wait_until_done()
    expect(chat.figures(1)).to_contain_text("stopped")


def test_a_too_long_question_names_its_length_and_the_remedy(
    chat: ChatPage, expected_messages: list[str]
) -> None:
    expected_messages.append("status of 422")
    chat.ask("word " * 3000)
    expect(chat.errors).to_have_text(
        re.compile(
            r"^Too long: the question has 3,\d\d\d tokens with its context, and there is room for 2,048 "
            r"together with the answer\. Shorten it, or send it in parts\.$"
        )
    )


@pytest.mark.parametrize(
    ("error_type", "message", "words"),
    [
        (
            "too_long",
            "max_tokens: 1700 prompt tokens and max_tokens 1000 exceed the limit of 2048",
            "Too long: the question has 1,700 tokens with its context, and there is room for 2,048 together "
            "with the answer. Shorten it, or choose fewer maximum tokens in the settings.",
        ),
        (
            "body_too_large",
            "the body is longer than 1048576 bytes",
            "Too long: the question is larger than this server reads. Shorten it, or send it in parts.",
        ),
    ],
    ids=["maximum tokens", "size of the request"],
)
def test_other_limits_have_words(
    chat: ChatPage, expected_messages: list[str], error_type: str, message: str, words: str
) -> None:
    expected_messages.append("status of 422")
    chat.fake_answers(lambda route: reject(route, 422, error_type, message))
    chat.ask(QUESTION)
    expect(chat.errors).to_have_text(words)


def test_the_page_waits_for_the_model(page: Page, server_url: str, expected_messages: list[str]) -> None:
    expected_messages.append("status of 503")
    loading = True

    def ready(route: Route) -> None:
        if loading:
            reject(route, 503, "loading", "The model is being loaded.")
        else:
            route.continue_()

    page.route("**/ready", ready)
    page.goto(server_url)
    chat = ChatPage(page, server_url)
    expect(chat.notice).to_have_text("The model is still loading…")
    chat.ask(QUESTION)
    expect(chat.send).to_be_disabled()
    expect(chat.log).to_be_empty()
    expect(chat.query).to_have_value(QUESTION)
    loading = False
    expect(chat.send).to_be_enabled()
    expect(chat.notice).to_be_hidden()
    expect(chat.status).to_have_text("The model is ready.")
    chat.make_answers_short()
    chat.query.press("Enter")
    chat.wait_until_done()
    expect(chat.answer(1)).not_to_be_empty()


def test_the_page_waits_for_the_server(page: Page, server_url: str, expected_messages: list[str]) -> None:
    expected_messages.append("ERR_CONNECTION_REFUSED")
    page.route("**/contexts", lambda route: route.abort("connectionrefused"))
    page.goto(server_url)
    chat = ChatPage(page, server_url)
    expect(chat.notice).to_have_text("The server cannot be reached. Trying again…")
    expect(chat.send).to_be_disabled()
    page.unroute("**/contexts")
    expect(chat.notice).to_be_hidden()
    expect(chat.context).to_be_enabled()


def test_a_removed_context_is_no_longer_offered(chat: ChatPage, expected_messages: list[str]) -> None:
    expected_messages.append("status of 404")
    served = httpx.get(f"{chat.url}/contexts").json()
    old = {**served, "contexts": [*served["contexts"], "pirate"]}
    chat.page.route("**/contexts", lambda route: route.fulfill(json=old))
    chat.page.reload()
    chat.context.select_option("pirate")
    chat.page.unroute("**/contexts")
    chat.make_answers_short()
    chat.ask(QUESTION)
    expect(chat.errors).to_contain_text("pirate")
    expect(chat.context).to_have_value(served["default"])
    assert chat.context.locator("option").all_text_contents() == served["contexts"]
    chat.retry.click()
    chat.wait_until_done()
    expect(chat.errors).to_have_count(0)
    assert [request["context"] for request in chat.sent] == ["pirate", served["default"]]


def test_the_page_waits_for_a_restarted_server(chat: ChatPage, expected_messages: list[str]) -> None:
    expected_messages.append("status of 503")
    chat.context.select_option("sql")
    chat.fake_answers(lambda route: reject(route, 503, "loading", "The model is being loaded."))
    chat.page.route("**/ready", lambda route: reject(route, 503, "loading", "The model is being loaded."))
    chat.ask(QUESTION)
    expect(chat.errors).to_have_text("The model is still loading. Try again when it is ready.")
    expect(chat.notice).to_have_text("The model is still loading…")
    expect(chat.retry).to_be_hidden()
    chat.reconnect()
    chat.page.unroute("**/ready")
    expect(chat.notice).to_be_hidden()
    expect(chat.context).to_have_value("sql")
    chat.make_answers_short()
    chat.retry.click()
    chat.wait_until_done()
    expect(chat.errors).to_have_count(0)
    expect(chat.answer(1)).not_to_be_empty()
