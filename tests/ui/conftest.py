"""A Chromium, a page that must not complain, and a relay that can fail."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, sync_playwright

from tests.ui.chat_page import ChatPage
from tests.ui.relay import Relay

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
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
    named = os.environ.get("CHROMIUM")
    found = next(filter(None, map(shutil.which, [named] if named else CHROMIUM_NAMES)), None)
    if found:
        return found
    reason = f"no browser: {named or ', '.join(CHROMIUM_NAMES)} not found; install chromium or set CHROMIUM"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


# Playwright's synchronous interface keeps an event loop running in this thread until it is stopped. Stopped
# with each module, it is never in the way of the asynchronous tests of others.
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
def tolerated() -> list[str]:
    """Patterns of the console messages that a test provokes on purpose."""
    return []


@pytest.fixture
def page(browser: Browser, tolerated: list[str]) -> Iterator[Page]:
    """A page in a fresh session; script and console errors (CSP violations too) and dialogs fail the test."""
    complaints: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(f"console {message.type}: {message.text}")

    def on_dialog(dialog: Dialog) -> None:
        complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    context = browser.new_context(viewport={"width": 1200, "height": 800}, color_scheme="light")
    page = context.new_page()
    page.on("console", on_console)
    page.on("dialog", on_dialog)
    page.on("pageerror", lambda error: complaints.append(f"script error: {error}"))
    yield page
    context.close()
    unexpected = [text for text in complaints if not any(re.search(known, text) for known in tolerated)]
    assert unexpected == []


@pytest.fixture
def chat(page: Page, server_url: str) -> ChatPage:
    """The page, opened at the real server."""
    return ChatPage(page, server_url).open()


@pytest.fixture
def relay(server_url: str) -> Iterator[Relay]:
    with Relay(server_url) as relay:
        yield relay
