"""Swagger UI: strict policy, no requests to other hosts, all operations, and their execution."""

from __future__ import annotations

import re
from typing import Any

import httpx
from playwright.sync_api import Locator, Page, expect

from tests.conftest import KEY, Server

FIRST = "post_token_stream"


def open_docs(page: Page, url: str, path: str = "/docs") -> list[str]:
    """Open the page. Returns a list of its requests, which later ones extend."""
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(url + path)
    expect(page.locator(".opblock").first).to_be_visible()
    return requested


def operation(page: Page, operation_id: str) -> Locator:
    return page.locator(f".opblock[id$='-{operation_id}']")


def n_operations(url: str) -> int:
    document: dict[str, Any] = httpx.get(f"{url}/openapi.json").json()
    return sum(len(item) for item in document["paths"].values())


def test_every_operation_is_listed_and_opens_without_errors(page: Page, server_url: str) -> None:
    """One test: Swagger UI takes seconds of CPU time to show the document."""
    requested = open_docs(page, server_url, "/swagger-ui/")
    expect(page.locator(".opblock")).to_have_count(n_operations(server_url))
    expect(page.locator(".opblock-tag").first).to_contain_text("Token stream")
    for operation_id in (FIRST, "post_v1_chat_completions", "post_invocations"):
        opened = operation(page, operation_id)
        opened.locator(".opblock-summary-control").click()
        examples = opened.locator("select.examples-select-element, .examples-select select")
        expect(examples.first).to_be_visible()
        opened.get_by_role("tab", name="Schema", exact=True).first.click()
        expect(opened.locator(".json-schema-2020-12").first).to_be_visible()
    assert page.locator(".errors-wrapper").count() == 0
    assert all(address.startswith((f"{server_url}/", "data:")) for address in requested)


def test_all_paths_have_the_same_page_with_absolute_addresses(server_url: str) -> None:
    [page] = {httpx.get(server_url + path).text for path in ("/docs", "/swagger-ui", "/swagger-ui/")}
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses
    assert all(address.startswith("/") for address in addresses)


def test_an_example_can_be_executed(page: Page, server_url: str) -> None:
    open_docs(page, server_url)
    first = operation(page, FIRST)
    first.locator(".opblock-summary-control").click()
    expect(first.locator("textarea.body-param__text")).to_have_value(re.compile("Where is located Paris"))
    first.get_by_role("button", name="Execute").click()
    answer = first.locator(".live-responses-table")
    expect(answer.locator("tbody td.response-col_status").first).to_contain_text("200")
    expect(answer).to_contain_text("Paris")


def test_the_key_can_be_entered(page: Page, locked_server: Server) -> None:
    open_docs(page, locked_server.url)
    page.get_by_role("button", name="Authorize").click()
    page.locator("#auth-bearer-value").fill(KEY)
    page.locator(".auth-btn-wrapper button.authorize").first.click()
    page.locator(".auth-btn-wrapper button.btn-done").first.click()
    contexts = operation(page, "get_contexts")
    contexts.locator(".opblock-summary-control").click()
    contexts.get_by_role("button", name="Execute").click()
    answer = contexts.locator(".live-responses-table")
    expect(answer.locator("tbody td.response-col_status").first).to_contain_text("200")
    expect(answer).to_contain_text("classifier")


def test_only_necessary_files_of_swagger_ui_are_served(server_url: str) -> None:
    for path in ("/docs", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js"):
        response = httpx.get(server_url + path)
        assert response.status_code == 200
        assert "unsafe" not in response.headers["content-security-policy"]
    assert httpx.get(f"{server_url}/docs/index.html").status_code == 404
    assert httpx.get(f"{server_url}/docs/swagger-initializer.js").status_code == 404
    assert "<script>" not in httpx.get(f"{server_url}/docs").text
