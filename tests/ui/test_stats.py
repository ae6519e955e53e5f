"""The page with the figures of the server."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import KEY, Server
from tests.ui.chat_page import ChatPage
from tests.ui.test_axe import SIZES, check, fits

QUESTION = "Where is the tower of Zanzibarquux?"
REQUESTS: list[dict[str, Any]] = [
    {
        "ended_at": 1764330000 + number,
        "route": "/v1/knowledge/documents/{name}" if number % 3 == 2 else "/token_stream",
        "status": 429 if number % 3 == 1 else 200,
        "seconds": 1.25,
        "key": "a-long-name-of-a-key",
        "context": "classifier",
        "prompt_tokens": 1234,
        "cached_tokens": 1200,
        "generated_tokens": 12,
        "time_to_first_token": 0.041,
        "queue_seconds": 2.5,
        "tokens_per_second": 123.4,
        **({"error": "overloaded"} if number % 3 == 1 else {"finish_reason": "eos_token"}),
    }
    for number in range(6)
]


def events(count: int) -> str:
    """A stream of events with a rising number of tokens."""
    figures = {
        "running_requests": 3,
        "waiting_requests": 1200,
        "kv_cache_cells.running": 3000,
        "kv_cache_cells.idle": 5000,
        "kv_cache_cells.free": 4000,
        "prefix_cache_queries_total": 2_000_000,
        "prefix_cache_hits_total.kv": 1_000_000,
        "prefix_cache_hits_total.ram": 500_000,
        "prefix_cache_hits_total.disk": 1,
    }
    parts = []
    for second in range(count):
        tokens = {"generated_tokens_total": 100 * second + (second % 7) * 40}
        data = {"time": 1764330000 + second, "model": "A model", "figures": figures | tokens}
        parts.append(f"data: {json.dumps({**data, 'requests': [] if second else REQUESTS})}\n\n")
    return "".join(parts)


def test_running_answers_and_ended_requests_are_shown_without_texts(chat: ChatPage) -> None:
    chat.change_requests(ignore_eos=True, max_tokens=1200)
    with chat.page.expect_popup() as opened:
        chat.page.get_by_role("link", name="Server figures").click()
    stats = opened.value
    problems: list[str] = []
    stats.on("console", lambda message: problems.append(message.text))
    expect(stats.get_by_role("heading", name="Server figures")).to_be_visible()
    expect(stats.locator("#running")).to_have_text("0")
    expect(stats.locator("#model")).to_have_text("SmolLM2-135M-Instruct.Q4_1")
    chat.context.select_option("math")
    chat.ask(QUESTION)
    expect(stats.locator("#running")).to_have_text("1")
    expect(stats.locator("#speed")).not_to_have_text("0")
    expect(stats.locator("#kv")).not_to_have_text("0%")
    expect(stats.locator("#kv-cells")).to_contain_text("of 16,384 tokens")
    chat.stop.click()
    chat.wait_until_done()
    first = stats.get_by_role("list", name="Latest requests").get_by_role("listitem").first
    expect(first).to_contain_text("/token_stream · math")
    expect(first).to_contain_text("cancelled")
    expect(stats.locator("#running")).to_have_text("0")
    three_points = re.compile(r"\S+ \S+ \S+")
    expect(stats.locator("#chart polyline")).to_have_attribute("points", three_points)
    assert "Zanzibarquux" not in stats.content()
    assert problems == []


def test_a_new_tab_has_the_key_and_another_one_asks_for_it(
    page: Page, locked_server: Server, expected_messages: list[str]
) -> None:
    expected_messages.append("status of 401")
    page.goto(f"{locked_server.url}/stats")
    expect(page.get_by_text("This server requires a key.")).to_be_visible()
    expect(page.locator("#figures")).to_be_hidden()
    page.get_by_label("Key", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_text("This key is wrong.")).to_be_visible()
    page.get_by_label("Key", exact=True).fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#running")).to_have_text("0")
    expect(page.locator("#notice")).to_be_hidden()
    page.get_by_role("link", name="Conversation").click()
    expect(page.get_by_label("Your question")).to_be_visible()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Server figures").click()
    expect(opened.value.locator("#running")).to_have_text("0")


def test_a_broken_stream_is_told_and_read_again(
    page: Page, server_url: str, expected_messages: list[str]
) -> None:
    expected_messages.append("ERR_FAILED|status of 429")
    page.route("**/stats/events", lambda route: route.fulfill(status=429))
    page.goto(f"{server_url}/stats")
    expect(page.get_by_text("Others look at these figures already")).to_be_visible()
    page.unroute("**/stats/events")
    page.route("**/stats/events", lambda route: route.abort())
    expect(page.get_by_text("The server cannot be reached. Trying again…")).to_be_visible()
    page.unroute("**/stats/events")
    expect(page.locator("#running")).to_have_text("0")
    expect(page.locator("#notice")).to_be_hidden()


@pytest.mark.parametrize("size", SIZES)
def test_the_figures_fit_every_size_and_have_no_violations(page: Page, server_url: str, size: str) -> None:
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    page.route("**/stats/events", lambda route: route.fulfill(body=events(130)))
    page.goto(f"{server_url}/stats")
    expect(page.locator("#queued")).to_have_text("1,200")
    expect(page.locator("#hits")).to_have_text("75%")
    expect(page.locator("#kv")).to_have_text("25%")
    assert fits(page)
    check(page)
