"""The page as the browser tests use it: what a user can do and see, without the selectors behind it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import httpx
from playwright.sync_api import Locator, Page, Route, expect

ANSWER_TIMEOUT_MS = 60_000

# Notes every length the answer's text has while it is busy, and everything that a screen reader is told.
RECORDER = """
window.recorded = {lengths: [], said: [], spoken: []};
new MutationObserver(() => {
  const answer = document.querySelector('.turn:last-child .answer');
  if (answer?.getAttribute('aria-busy') === 'true')
    recorded.lengths.push(answer.querySelector('.text').textContent.length);
}).observe(document.getElementById('log'), {subtree: true, childList: true, characterData: true});
for (const [id, list] of [['status', recorded.said], ['spoken', recorded.spoken]])
  new MutationObserver(() => {
    const text = document.getElementById(id).textContent;
    if (text) list.push(text);
  }).observe(document.getElementById(id), {childList: true});
"""


class ChatPage:
    """One browser page, opened at the server and ready for a question."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.asked: list[dict[str, Any]] = []
        self.query = page.get_by_label("Your question")
        self.context = page.get_by_label("Context")
        self.send = page.get_by_role("button", name="Send")
        self.stop = page.get_by_role("button", name="Stop")
        self.clear = page.get_by_role("button", name="New conversation")
        self.latest = page.get_by_role("button", name="Latest")
        self.retry = page.get_by_role("button", name="Try again")
        self.log = page.get_by_role("log", name="Conversation")
        self.examples = page.get_by_role("list", name="Example questions").get_by_role("button")
        self.status = page.locator("#status")
        self.notice = page.locator("#notice")
        self.errors = self.log.get_by_role("alert")

    def open(self) -> ChatPage:
        self.page.goto(self.url)
        self.page.evaluate(RECORDER)
        expect(self.context).to_be_enabled()
        return self

    def ask(self, text: str) -> None:
        self.query.fill(text)
        self.query.press("Enter")

    def question(self, position: int) -> Locator:
        return self.page.get_by_role("article", name=f"Question {position}").locator(".text")

    def answer(self, position: int) -> Locator:
        return self.page.get_by_role("article", name=f"Answer {position}").locator(".text")

    def figures(self, position: int) -> Locator:
        return self.page.get_by_role("article", name=f"Answer {position}").locator(".figures")

    def wait_until_busy(self) -> None:
        """Until an answer has begun to arrive."""
        expect(self.stop).to_be_visible()
        expect(self.log.locator(".text").last).not_to_be_empty(timeout=ANSWER_TIMEOUT_MS)

    def wait_until_done(self) -> None:
        expect(self.log).to_have_attribute("aria-busy", "false", timeout=ANSWER_TIMEOUT_MS)
        expect(self.stop).to_be_hidden()

    def wait_for(self, expression: str) -> None:
        """Until a JavaScript expression is true; `Page.wait_for_function` is stopped by the page's CSP."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_MS / 1000
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            self.page.wait_for_timeout(30)

    def recorded(self, what: str) -> list[Any]:
        notes: list[Any] = self.page.evaluate(f"recorded.{what}")
        return notes

    def change_requests(self, **fields: Any) -> None:
        """Add fields to the questions that the page sends to the real server; `asked` has what it sent."""

        def change(route: Route) -> None:
            question = route.request.post_data_json
            self.asked.append(question)
            route.continue_(post_data=json.dumps({**question, **fields}))

        self.page.route("**/token_stream", change)

    def make_answers_long(self) -> None:
        """Let the model write on where it would have ended."""
        self.change_requests(ignore_eos=True, max_tokens=1800)

    def make_answers_short(self) -> None:
        self.change_requests(max_tokens=20)

    def play(self, answer: Callable[[Route], None]) -> None:
        """Answer the page's questions in the server's place."""
        self.page.route("**/token_stream", answer)

    def serve_again(self) -> None:
        self.page.unroute("**/token_stream")


def running_requests(url: str) -> float:
    """The server's gauge of the answers that it generates at this moment."""
    metrics = httpx.get(f"{url}/metrics").raise_for_status().text
    found = re.search(r"^running_requests(?:\{[^}]*\})? (\S+)$", metrics, re.MULTILINE)
    assert found, "no gauge running_requests in /metrics"
    return float(found[1])
