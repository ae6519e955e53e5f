"""What the page shows when something fails, and that it recovers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.ui.chat_page import ChatPage
from tests.ui.relay import CUT, Relay

CLASSIC = "Where is located Paris ?"
CUT_MESSAGE = "The connection broke before the answer was complete."


@pytest.mark.parametrize("fields", [{"context": "nowhere"}, {"max_tokens": -1}, {"unknown": 1}])
def test_refusal_shows_the_servers_own_words(
    chat: ChatPage, tolerated: list[str], fields: dict[str, Any]
) -> None:
    tolerated.append("status of 4")
    body = {"query": CLASSIC, "context": "general", "details": True, **fields}
    words = httpx.post(f"{chat.url}/token_stream", json=body).json()["error"]
    assert next(iter(fields)) in words or "nowhere" in words
    chat.change_requests(**fields)
    chat.ask(CLASSIC)
    expect(chat.errors).to_have_text(words)
    expect(chat.question(1)).to_have_text(CLASSIC)
    chat.wait_until_done()
    chat.serve_again()
    chat.make_answers_short()
    chat.retry.click()
    chat.wait_until_done()
    expect(chat.errors).to_have_count(0)
    expect(chat.figures(1)).to_contain_text("tokens/s")


def test_failure_that_is_not_the_servers_json(chat: ChatPage, tolerated: list[str]) -> None:
    tolerated.append("status of 502")
    chat.play(lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    chat.ask(CLASSIC)
    expect(chat.errors).to_have_text("The server answered 502 Bad Gateway.")


def test_failure_after_the_first_byte_keeps_the_text(chat: ChatPage) -> None:
    failure = json.dumps({"error": "The model ran out of memory.", "error_type": "generation"})
    chat.play(lambda route: route.fulfill(body=f"Paris is\x1e{failure}"))
    chat.ask(CLASSIC)
    expect(chat.errors).to_have_text("The model ran out of memory.")
    expect(chat.answer(1)).to_have_text("Paris is")
    expect(chat.figures(1)).to_have_text("general · failed")


def test_no_network(chat: ChatPage, tolerated: list[str]) -> None:
    tolerated.append("ERR_INTERNET_DISCONNECTED")
    chat.page.context.set_offline(True)
    chat.ask(CLASSIC)
    expect(chat.errors).to_have_text("The server cannot be reached.")
    chat.page.context.set_offline(False)
    chat.make_answers_short()
    chat.retry.click()
    chat.wait_until_done()
    expect(chat.answer(1)).not_to_be_empty()
    expect(chat.errors).to_have_count(0)


@pytest.mark.parametrize("ending", [CUT, b""], ids=["connection lost", "ended without details"])
def test_cut_stream(page: Page, relay: Relay, tolerated: list[str], ending: bytes | None) -> None:
    tolerated.append("ERR_INCOMPLETE_CHUNKED_ENCODING")
    relay.pieces = [b"Paris ", b"is", ending]
    chat = ChatPage(page, relay.url).open()
    chat.ask(CLASSIC)
    expect(chat.errors).to_have_text(CUT_MESSAGE)
    expect(chat.answer(1)).to_have_text("Paris is")
    expect(chat.send).to_be_visible()
    relay.pieces = [b"Paris is in France.", b'\x1e{"finish_reason": "eos_token", "generated_tokens": 5}']
    chat.retry.click()
    expect(chat.answer(1)).to_have_text("Paris is in France.")
    expect(chat.errors).to_have_count(0)


def refuse_once(route: Route, status: int, error_type: str, text: str) -> None:
    route.fulfill(status=status, json={"error": text, "error_type": error_type})


def test_overloaded_server_and_another_try(chat: ChatPage, tolerated: list[str]) -> None:
    tolerated.append("status of 429")
    chat.play(lambda route: refuse_once(route, 429, "overloaded", "256 requests wait already."))
    chat.ask(CLASSIC)
    expect(chat.errors).to_have_text("256 requests wait already.")
    chat.serve_again()
    chat.make_answers_short()
    chat.retry.click()
    chat.wait_until_done()
    expect(chat.log.get_by_role("article", name="Question")).to_have_count(1)
    expect(chat.answer(1)).not_to_be_empty()


def test_page_waits_for_the_model(page: Page, server_url: str, tolerated: list[str]) -> None:
    tolerated.append("status of 503")
    loading = True

    def ready(route: Route) -> None:
        if loading:
            refuse_once(route, 503, "loading", "The model is being loaded.")
        else:
            route.continue_()

    page.route("**/ready", ready)
    page.goto(server_url)
    chat = ChatPage(page, server_url)
    expect(chat.notice).to_have_text("The model is still loading…")
    chat.ask(CLASSIC)
    expect(chat.send).to_be_disabled()
    expect(chat.log).to_be_empty()
    expect(chat.query).to_have_value(CLASSIC)
    loading = False
    expect(chat.send).to_be_enabled()
    expect(chat.notice).to_be_hidden()
    expect(chat.status).to_have_text("The model is ready.")
    chat.make_answers_short()
    chat.query.press("Enter")
    chat.wait_until_done()
    expect(chat.answer(1)).not_to_be_empty()


def test_page_waits_for_the_server(page: Page, server_url: str, tolerated: list[str]) -> None:
    tolerated.append("ERR_CONNECTION_REFUSED")
    page.route("**/contexts", lambda route: route.abort("connectionrefused"))
    page.goto(server_url)
    chat = ChatPage(page, server_url)
    expect(chat.notice).to_have_text("The server cannot be reached. Trying again…")
    expect(chat.send).to_be_disabled()
    page.unroute("**/contexts")
    expect(chat.notice).to_be_hidden()
    expect(chat.context).to_be_enabled()


def test_model_that_is_loaded_again(chat: ChatPage, tolerated: list[str]) -> None:
    tolerated.append("status of 503")
    chat.context.select_option("sql")
    chat.play(lambda route: refuse_once(route, 503, "loading", "The model is being loaded."))
    chat.page.route(
        "**/ready", lambda route: refuse_once(route, 503, "loading", "The model is being loaded.")
    )
    chat.ask(CLASSIC)
    expect(chat.errors).to_have_text("The model is being loaded.")
    expect(chat.notice).to_have_text("The model is still loading…")
    expect(chat.retry).to_be_hidden()
    chat.serve_again()
    chat.page.unroute("**/ready")
    expect(chat.notice).to_be_hidden()
    expect(chat.context).to_have_value("sql")
    chat.make_answers_short()
    chat.retry.click()
    chat.wait_until_done()
    expect(chat.errors).to_have_count(0)
    expect(chat.answer(1)).not_to_be_empty()
