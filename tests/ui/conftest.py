"""Chromium, a page that fails the test on errors, and a relay with forced faults."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, expect, sync_playwright

from tests.ui.chat_page import ChatPage
from tests.ui.relay import Relay

# The first ones have no user interface. With it, each test needs twice the CPU time.
CHROMIUM_NAMES = (
    "chromium-headless-shell",
    "chrome-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
)
TIMEOUT = 90_000  # milliseconds; the defaults, 5 s and 30 s, are too short on a busy machine
expect.set_options(timeout=TIMEOUT)

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-smooth-scrolling",
]


def _find_chromium() -> str:
    configured = os.environ.get("CHROMIUM")
    found = next(filter(None, map(shutil.which, [configured] if configured else CHROMIUM_NAMES)), None)
    if found:
        return found
    reason = (
        f"no browser: {configured or ', '.join(CHROMIUM_NAMES)} not found; install chromium or set CHROMIUM"
    )
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


# Playwright's synchronous interface runs an event loop in this thread. It is stopped after each module, as it
# would disturb asynchronous tests, which one process of a test run may compute next.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = _find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, headless=True, args=CHROMIUM_ARGUMENTS
        )
        yield browser
        browser.close()


@pytest.fixture
def expected_messages() -> list[str]:
    """Patterns of console messages that a test expects."""
    return []


@pytest.fixture
def page(browser: Browser, expected_messages: list[str]) -> Iterator[Page]:
    """A page in a new session. Script errors, console errors, CSP violations and dialogs fail the test."""
    problems: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            problems.append(f"console {message.type}: {message.text}")

    def on_dialog(dialog: Dialog) -> None:
        problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    context = browser.new_context(viewport={"width": 1200, "height": 800}, color_scheme="light")
    context.set_default_timeout(TIMEOUT)
    page = context.new_page()
    page.on("console", on_console)
    page.on("dialog", on_dialog)
    page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
    yield page
    context.close()
    unexpected = [
        text for text in problems if not any(re.search(pattern, text) for pattern in expected_messages)
    ]
    assert unexpected == []


@pytest.fixture
def chat(page: Page, server_url: str) -> ChatPage:
    """The web page of the server."""
    return ChatPage(page, server_url).open()


@pytest.fixture
def relay(server_url: str) -> Iterator[Relay]:
    with Relay(server_url) as relay:
        yield relay
