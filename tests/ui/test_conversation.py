"""A conversation: its history in requests, other versions of questions and answers, and continued answers."""

from __future__ import annotations

import json
import re
from typing import Any

from playwright.sync_api import Route, expect

from tests.ui.chat_page import ChatPage

QUESTION = "My name is Ada and I live in Rome. Greet me by my name."
FIGURES = {"prompt_tokens": 40, "cached_tokens": 30, "generated_tokens": 8, "finish_reason": "eos_token"}


def button(chat: ChatPage, name: str) -> Any:
    return chat.log.get_by_role("button", name=name, exact=True)


def answer_with(chat: ChatPage, *texts: str, **figures: Any) -> list[dict[str, Any]]:
    """Answer with these texts in turn. Returns the list of requests, which later ones extend."""
    sent: list[dict[str, Any]] = []

    def answer(route: Route) -> None:
        sent.append(route.request.post_data_json)
        text = texts[(len(sent) - 1) % len(texts)]
        route.fulfill(body=f"{text}\n\x1e{json.dumps({**FIGURES, **figures})}")

    chat.fake_answers(answer)
    return sent


def ask(chat: ChatPage, *questions: str) -> None:
    for question in questions:
        chat.ask(question)
        chat.wait_until_done()


def contents(request: dict[str, Any]) -> list[str]:
    return [message["content"] for message in request["messages"]]


def test_earlier_turns_are_sent_and_cached(chat: ChatPage) -> None:
    chat.make_answers_short()
    ask(chat, QUESTION, "What is my name?")
    first = chat.answer(1).inner_text()
    roles = [message["role"] for message in chat.sent[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert contents(chat.sent[1]) == [QUESTION, first, "What is my name?"]
    prompt, cached = map(int, re.findall(r"(\d+)", (chat.figures(2).text_content() or "").split("prompt")[1]))
    assert cached > len(QUESTION.split()) * 2
    assert cached < prompt


def test_an_edited_question_starts_another_branch(chat: ChatPage) -> None:
    sent = answer_with(chat, "one", "two", "three", "four")
    ask(chat, "First?", "Second?")
    button(chat, "Edit question 1").click()
    field = chat.page.get_by_label("Text of question 1")
    expect(field).to_be_focused()
    expect(field).to_have_value("First?")
    field.fill("Other first?")
    field.press("Enter")
    chat.wait_until_done()
    assert contents(sent[2]) == ["Other first?"]
    expect(chat.answer(1)).to_have_text("three")
    expect(chat.question(2)).to_have_count(0)
    button(chat, "Previous question").click()
    expect(chat.question(1)).to_have_text("First?")
    expect(chat.answer(2)).to_have_text("two")
    assert chat.recorded("status")[-1] == "Question 1 of 2."


def test_escape_ends_editing_only(chat: ChatPage) -> None:
    answer_with(chat, "one")
    ask(chat, "First?")
    button(chat, "Edit question 1").click()
    chat.page.keyboard.press("Escape")
    expect(button(chat, "Edit question 1")).to_be_focused()
    expect(chat.question(1)).to_have_text("First?")


def test_regenerated_answers_are_alternatives(chat: ChatPage) -> None:
    chat.make_answers_short()
    ask(chat, QUESTION)
    first = chat.answer(1).inner_text()
    for _ in range(2):
        button(chat, "Regenerate answer 1").click()
        chat.wait_until_done()
    third = chat.answer(1).inner_text()
    assert first != third, "a regenerated answer is sampled"
    expect(chat.log.get_by_text("3/3")).to_be_visible()
    button(chat, "Previous answer").click()
    button(chat, "Previous answer").click()
    expect(chat.log.get_by_text("1/3")).to_be_visible()
    assert chat.answer(1).inner_text() == first
    expect(button(chat, "Next answer")).to_be_focused()
    ask(chat, "And now?")
    assert contents(chat.sent[-1])[1] == first


def test_later_turns_belong_to_their_alternative(chat: ChatPage) -> None:
    sent = answer_with(chat, "one", "two", "three")
    ask(chat, "First?", "Second?")
    button(chat, "Regenerate answer 1").click()
    chat.wait_until_done()
    expect(chat.question(2)).to_have_count(0)
    button(chat, "Previous answer").click()
    expect(chat.answer(2)).to_have_text("two")
    assert sent[2]["temperature"] > 0


def test_a_cut_answer_continues(chat: ChatPage) -> None:
    chat.change_requests(temperature=0, max_tokens=12, ignore_eos=True)
    ask(chat, QUESTION)
    start = chat.answer(1).inner_text()
    button(chat, "Continue answer 1").click()
    chat.wait_until_done()
    continued = chat.answer(1).inner_text()
    assert contents(chat.sent[1]) == [QUESTION, start]
    assert continued.startswith(start)
    chat.reconnect()
    chat.change_requests(temperature=0, max_tokens=24, ignore_eos=True)
    chat.clear.click()
    ask(chat, QUESTION)
    assert chat.answer(1).inner_text() == continued


def test_a_stopped_answer_continues(chat: ChatPage) -> None:
    chat.make_answers_long()
    chat.ask("Tell me a long story.")
    chat.wait_until_busy()
    chat.page.keyboard.press("Escape")
    chat.wait_until_done()
    expect(button(chat, "Continue answer 1")).to_be_visible()


def test_the_oldest_turns_are_left_out_before_the_room_ends(chat: ChatPage) -> None:
    sent = answer_with(chat, "word " * 300, prompt_tokens=1500, generated_tokens=300)
    ask(chat, "First?", "Second?")
    assert contents(sent[1]) == ["Second?"]
    remark = chat.page.get_by_text("Answers no longer know the turn above.")
    expect(remark).to_be_visible()
    assert (
        remark.evaluate("(node) => node.parentElement.querySelector('.question .text').textContent")
        == "Second?"
    )


def test_turns_that_the_server_rejects_are_left_out(chat: ChatPage, expected_messages: list[str]) -> None:
    """The page only estimates: an answer of unknown size that has more tokens than expected."""
    expected_messages.append("status of 422")
    dense = "".join(chr(0x4E00 + i * 7) for i in range(1700))  # several tokens per character
    answer_with(chat, dense, prompt_tokens=40, generated_tokens=8)
    ask(chat, "First?")
    chat.reconnect()
    chat.make_answers_short()
    ask(chat, "Where is Paris?")
    assert [len(contents(request)) for request in chat.sent] == [3, 1]
    expect(chat.errors).to_have_count(0)
    expect(chat.page.get_by_text("Answers no longer know the turn above.")).to_be_visible()


def test_every_failed_turn_can_be_tried_again(chat: ChatPage, expected_messages: list[str]) -> None:
    expected_messages.append("status of 500")
    chat.fake_answers(
        lambda route: route.fulfill(status=500, json={"error": "No memory.", "error_type": "internal"})
    )
    ask(chat, "First?", "Second?")
    expect(chat.retry).to_have_count(2)
    chat.reconnect()
    sent = answer_with(chat, "one", "two")
    chat.retry.first.click()
    expect(chat.answer(1)).to_have_text("one")
    expect(chat.retry).to_have_count(1)
    chat.retry.click()
    chat.wait_until_done()
    assert contents(sent[1]) == ["First?", "one", "Second?"]


def test_the_arrow_up_recalls_the_last_question(chat: ChatPage) -> None:
    answer_with(chat, "one")
    ask(chat, "First?")
    chat.query.press("ArrowUp")
    expect(chat.query).to_have_value("First?")
    expect(chat.send).to_be_enabled()
