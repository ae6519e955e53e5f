"""Settings of requests, words about a missing key, the tab, and probabilities of choices."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.conftest import Server
from tests.tiny_models import TinyModel
from tests.ui.chat_page import ChatPage
from tests.ui.relay import Relay

QUESTION = "Where is located Paris ?"
FIGURES: dict[str, Any] = {"finish_reason": "eos_token", "prompt_tokens": 40, "generated_tokens": 8}


def drawer(chat: ChatPage) -> Locator:
    chat.page.locator("#open-settings").click()
    return chat.page.get_by_role("dialog", name="Settings")


def close(chat: ChatPage) -> None:
    chat.page.keyboard.press("Escape")
    expect(chat.page.locator("dialog[open]")).to_have_count(0)


def test_settings_are_sent_and_remembered(chat: ChatPage) -> None:
    opened = drawer(chat)
    opened.get_by_label("Own system text").fill("You only ever say PONG.")
    for label, value in {"Temperature": "0.7", "Top-p": "0.9", "Maximum tokens": "9", "Seed": "7"}.items():
        opened.get_by_label(label).fill(value)
    close(chat)
    chat.page.reload()
    expect(chat.page.get_by_role("button", name="Settings, changed")).to_be_visible()
    expect(chat.context).to_be_enabled()
    chat.change_requests()
    chat.ask(QUESTION)
    chat.wait_until_done()
    assert chat.sent == [
        {
            "messages": [
                {"role": "system", "content": "You only ever say PONG."},
                {"role": "user", "content": QUESTION},
            ],
            "context": "general",
            "details": True,
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 9,
            "seed": 7,
        }
    ]
    expect(chat.figures(1)).to_contain_text("9 tokens")
    opened = drawer(chat)
    opened.get_by_role("button", name="Defaults").click()
    expect(opened.get_by_label("Temperature")).to_have_value("")
    close(chat)
    chat.ask(QUESTION)
    chat.wait_until_done()
    assert set(chat.sent[1]) == {"messages", "context", "details"}
    assert chat.sent[1]["messages"][0]["role"] == "user"


def test_the_context_is_shown_with_its_prompt(chat: ChatPage) -> None:
    prompts = httpx.get(f"{chat.url}/contexts").json()["prompts"]
    opened = drawer(chat)
    for name in ("general", "sql"):
        opened.get_by_label("Context for questions").select_option(name)
        expect(opened.get_by_text(prompts[name])).to_be_visible()
    close(chat)
    expect(chat.context).to_have_value("sql")
    chat.page.reload()
    expect(chat.context).to_have_value("sql")


@pytest.mark.parametrize(
    ("label", "value"), [("Temperature", "11"), ("Top-p", "0"), ("Maximum tokens", "5000")]
)
def test_an_invalid_setting_is_not_sent(chat: ChatPage, label: str, value: str) -> None:
    field = drawer(chat).get_by_label(label)
    field.fill(value)
    assert field.evaluate("(node) => node.matches(':invalid')")
    close(chat)
    expect(chat.page.get_by_role("button", name="Settings", exact=True)).to_be_visible()


def test_a_maximum_beyond_the_room_is_reduced(chat: ChatPage, expected_messages: list[str]) -> None:
    expected_messages.append("status of 422")
    drawer(chat).get_by_label("Maximum tokens").fill("2040")
    close(chat)
    sent: list[Any] = []

    def pass_on(route: Route) -> None:
        sent.append(route.request.post_data_json["max_tokens"])
        route.continue_()

    chat.page.route("**/token_stream", pass_on)
    chat.ask("Say hello.")
    chat.wait_until_done()
    expect(chat.errors).to_have_count(0)
    assert sent[0] == 2040
    assert 1900 < sent[1] < 2040


def test_thinking_is_a_setting_of_models_that_think(page: Page, server_url: str) -> None:
    page.route("**/contexts", lambda route: route.fulfill(json={**route.fetch().json(), "thinks": True}))
    chat = ChatPage(page, server_url).open()
    sent: list[Any] = []

    def answer(route: Route) -> None:
        sent.append(route.request.post_data_json)
        route.fulfill(body=f"<think>\nHm.\n</think>\n\nYes.\n\x1e{json.dumps(FIGURES)}")

    chat.fake_answers(answer)
    drawer(chat).get_by_label("Thoughts before the answer").select_option("Off")
    close(chat)
    chat.ask(QUESTION)
    chat.wait_until_done()
    assert (sent[0]["enable_thinking"], sent[0]["show_thinking"]) == (False, True)
    expect(chat.answer(1)).to_have_text("Yes.")


def test_probabilities_of_choices_are_bars(
    start_server: Callable[..., Server], page: Page, tmp_path: Path
) -> None:
    contexts = tmp_path / "contexts.toml"
    contexts.write_text("[contexts.general]\nprompt = 'Name the mood.'\nchoices = ['good', 'bad', 'none']\n")
    chat = ChatPage(page, start_server(CONTEXTS_FILE=str(contexts)).wait_until().url).open()
    chat.ask("I love it.")
    chat.wait_until_done()
    bars = chat.log.get_by_role("list", name="Probabilities").get_by_role("listitem")
    expect(bars).to_have_count(3)
    expect(bars.first.locator(".name")).to_have_text((chat.answer(1).text_content() or "").strip())
    widths = bars.locator("meter").evaluate_all("(all) => all.map((meter) => meter.value)")
    assert widths == sorted(widths, reverse=True)
    assert sum(widths) == pytest.approx(1, abs=0.01)
    expect(bars.first.locator(".share")).to_have_text(re.compile(r"^[\d.]+%$"))
    expect(chat.figures(1)).to_contain_text("of the probability")


def test_the_tab_shows_a_running_answer(page: Page, relay: Relay) -> None:
    relay.pieces = [b"word "] * 40 + [f"\n\x1e{json.dumps(FIGURES)}".encode()]
    chat = ChatPage(page, relay.url).open()
    icon = "document.querySelector('link[rel=icon]').getAttribute('href')"
    assert (page.title(), page.evaluate(icon)) == ("Tokenstream", "/ui/icon.svg")
    chat.ask(QUESTION)
    chat.wait_until_busy()
    assert page.title() == f"Answering… – {QUESTION} – Tokenstream"
    assert page.evaluate(icon) == "/ui/icon-running.svg"
    chat.wait_until_done()
    assert page.title() == f"{QUESTION} – Tokenstream"
    assert page.evaluate(icon) == "/ui/icon.svg"


def test_a_missing_key_is_asked_for_before_questions(
    start_server: Callable[..., Server], page: Page, expected_messages: list[str]
) -> None:
    expected_messages.append("status of 401")
    page.goto(start_server(API_KEY="right").wait_until().url)
    expect(page.get_by_role("heading", name="This server is locked")).to_be_visible()
    expect(page.get_by_text("What would you like to ask?")).to_be_hidden()
    page.get_by_label("Key", exact=True).fill("wrong")
    page.get_by_role("button", name="Enter").click()
    expect(page.locator("#notice")).to_have_text(
        "This key is wrong. Enter the key that the operator of this server gave you, "
        "not one of another service."
    )
    page.get_by_label("Key", exact=True).fill("right")
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_role("heading", name="What would you like to ask?")).to_be_visible()


CONTEXTS = """
[contexts.general]
prompt = "You are a helpful assistant."
"""


def test_a_model_can_be_chosen_where_there_are_several(
    page: Page, start_server: Callable[..., Server], tiny_model: TinyModel, tmp_path: Path
) -> None:
    (tmp_path / "contexts.toml").write_text(CONTEXTS)
    models = f"smollm2,tiny={tiny_model('hybrid')}"
    sizes = {"N_CTX": "2048", "MAX_SEQUENCES": "2"}
    server = start_server(MODELS=models, CONTEXTS_FILE=str(tmp_path / "contexts.toml"), **sizes).wait_until()
    chat = ChatPage(page, server.url).open()
    expect(page.locator("#model")).to_have_text("smollm2")
    expect(page.locator("#small")).to_be_visible()
    chat.make_answers_short()
    opened = drawer(chat)
    expect(opened.get_by_label("Thoughts before the answer")).to_be_visible()
    model = opened.get_by_role("combobox", name="Model")
    assert model.locator("option").all_text_contents() == ["Default", "smollm2", "tiny"]
    model.select_option("tiny")
    close(chat)
    expect(page.locator("#model")).to_have_text("tiny")
    expect(page.locator("#small")).to_be_hidden()
    chat.ask(QUESTION)
    chat.wait_until_done()
    expect(chat.figures(1)).to_contain_text("general · tiny · ")
    page.reload()
    expect(page.locator("#model")).to_have_text("tiny")
    drawer(chat).get_by_role("button", name="Defaults").click()
    close(chat)
    expect(page.locator("#model")).to_have_text("smollm2")
    chat.ask(QUESTION)
    chat.wait_until_done()
    expect(chat.figures(2)).to_have_text(re.compile(r"^general · \d+ tokens?"))
    assert [request.get("model") for request in chat.sent] == ["tiny", None]
    assert all(request["show_thinking"] for request in chat.sent), "the second model may think"


def test_a_server_with_one_model_offers_no_choice(chat: ChatPage) -> None:
    expect(drawer(chat).get_by_label("Temperature")).to_be_visible()
    expect(chat.page.locator("#model-setting")).to_be_hidden()
