"""Actions and visible parts of the web page, without selectors."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, Page, Route, expect

ANSWER_TIMEOUT_MS = 120_000

# Records the lengths of a streaming answer, and all texts of the live regions for screen readers.
RECORDER = """
window.recorded = {lengths: [], status: [], spoken: []};
new MutationObserver(() => {
  const answer = document.querySelector('.turn:last-child .answer');
  if (answer?.getAttribute('aria-busy') === 'true')
    recorded.lengths.push(answer.querySelector('.text').textContent.length);
}).observe(document.getElementById('log'), {subtree: true, childList: true, characterData: true});
for (const [id, list] of [['status', recorded.status], ['spoken', recorded.spoken]])
  new MutationObserver(() => {
    const text = document.getElementById(id).textContent;
    if (text) list.push(text);
  }).observe(document.getElementById(id), {childList: true});
"""


class ChatPage:
    """A browser page with the web page of a server."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.sent: list[dict[str, Any]] = []
        self.query = page.get_by_label("Your question")
        self.context = page.get_by_role("combobox", name="Context", exact=True)
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
        """Wait for the first text of an answer."""
        expect(self.stop).to_be_visible()
        expect(self.log.locator(".text").last).not_to_be_empty(timeout=ANSWER_TIMEOUT_MS)

    def wait_until_done(self) -> None:
        expect(self.log).to_have_attribute("aria-busy", "false", timeout=ANSWER_TIMEOUT_MS)
        expect(self.stop).to_be_hidden()

    def wait_for(self, expression: str) -> None:
        """Wait until a JavaScript expression is true. The page's CSP blocks `Page.wait_for_function`."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_MS / 1000
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"not true in time: {expression}"
            self.page.wait_for_timeout(30)

    def recorded(self, name: str) -> list[Any]:
        values: list[Any] = self.page.evaluate(f"recorded.{name}")
        return values

    def change_requests(self, **fields: Any) -> None:
        """Add fields to the requests of the page. `sent` has the requests without them."""

        def change(route: Route) -> None:
            question = route.request.post_data_json
            self.sent.append(question)
            route.continue_(post_data=json.dumps({**question, **fields}))

        self.page.route("**/token_stream", change)

    def make_answers_long(self) -> None:
        """Continue answers after the end token of the model."""
        self.change_requests(ignore_eos=True, max_tokens=1800)

    def make_answers_short(self) -> None:
        self.change_requests(max_tokens=20)

    def fake_answers(self, answer: Callable[[Route], None]) -> None:
        """Answer the requests of the page instead of the server."""
        self.page.route("**/token_stream", answer)

    def reconnect(self) -> None:
        self.page.unroute("**/token_stream")
