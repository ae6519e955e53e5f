"""The web page of a server with API_KEY."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import Server

KEY = "öffne dich"


@pytest.fixture
def expected_messages() -> list[str]:
    return ["status of 401"]


def test_the_page_requires_the_right_key_once_per_tab(
    start_server: Callable[..., Server], page: Page
) -> None:
    server = start_server(API_KEY=KEY).wait_until()
    page.goto(server.url)
    expect(page.get_by_text("This server requires a key. Its operator has it.")).to_be_visible()
    expect(page.locator("#composer")).to_be_hidden()
    page.get_by_label("Key", exact=True).fill("wrong")
    page.get_by_label("Key", exact=True).press("Enter")
    expect(page.get_by_text("This key is wrong.")).to_be_visible()
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Enter").click()
    page.get_by_label("Your question").fill("Where is located Paris ?")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".answer .figures")).to_contain_text("tokens")
    page.reload()  # the key is stored for the tab
    expect(page.locator("#model")).to_be_visible()
    expect(page.locator("#door")).to_be_hidden()
