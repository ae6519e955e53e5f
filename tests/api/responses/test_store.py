"""Responses are kept within limits of time and memory."""

from __future__ import annotations

from app.api.responses import store
from app.chat.messages import Message, ToolCall


def test_a_response_is_dropped_after_its_lifetime() -> None:
    now = [0.0]
    kept = store.ResponseStore(lambda: now[0])
    kept.add("a", [Message("user", "x")])
    now[0] = store.LIFETIME - 1
    assert kept.get("a") == (Message("user", "x"),)
    now[0] = store.LIFETIME
    assert kept.get("a") is None


def test_the_oldest_responses_are_dropped_at_the_limit_of_memory() -> None:
    kept = store.ResponseStore()
    half = Message("user", "x" * (store.MOST_CHARACTERS // 2))
    for name in ("a", "b"):
        kept.add(name, [half])
    assert (kept.get("a"), kept.get("b")) == (None, (half,))
    kept.add("c", [half, half])
    assert (kept.get("b"), kept.get("c")) == ((half,), None)


def test_parsed_arguments_count_for_the_limit_of_memory() -> None:
    kept = store.ResponseStore()
    lists = "[], " * (store.MOST_CHARACTERS // 250) + "[]"
    kept.add("a", [Message("assistant", "", (ToolCall("c", "f", f'{{"x": [{lists}]}}'),))])
    assert kept.get("a") is not None
    kept.add("b", [Message("assistant", "", (ToolCall("c", "f", f'{{"x": [{lists}, {lists}, {lists}]}}'),))])
    assert kept.get("b") is None
