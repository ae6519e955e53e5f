"""Responses are kept within limits of time and memory."""

from __future__ import annotations

from app.api.responses import store
from app.chat.messages import Message, ToolCall


def test_a_response_is_dropped_after_its_lifetime() -> None:
    now = [0.0]
    kept = store.ResponseStore(lambda: now[0])
    kept.add("a", b"{}", [Message("user", "x")])
    now[0] = store.LIFETIME - 1
    assert kept.get("a") == store.Stored(b"{}", (Message("user", "x"),))
    now[0] = store.LIFETIME
    assert kept.get("a") is None


def test_the_oldest_responses_are_dropped_at_the_limit_of_memory() -> None:
    kept = store.ResponseStore()
    half = [Message("user", "x" * (store.MOST_CHARACTERS // 2))]
    for name in ("a", "b"):
        kept.add(name, b"", half)
    assert (kept.get("a"), kept.get("b")) == (None, store.Stored(b"", (half[0],)))
    kept.add("c", b"x" * store.MOST_CHARACTERS, [])
    assert kept.get("b") is not None
    assert kept.get("c") is None
    kept.drop("b")
    for name in ("d", "e"):
        kept.add(name, b"x" * (store.MOST_CHARACTERS // 2 - 1000), [])
    assert kept.get("d") is not None


def test_a_response_belongs_to_the_key_that_created_it() -> None:
    kept = store.ResponseStore()
    kept.add("a", b"", [], "ann")
    assert kept.get("a", "ann") is not None
    assert kept.get("a", "bob") is kept.get("a") is None


def test_parsed_arguments_count_for_the_limit_of_memory() -> None:
    kept = store.ResponseStore()
    lists = "[], " * (store.MOST_CHARACTERS // 250) + "[]"
    kept.add("a", b"", [Message("assistant", "", (ToolCall("c", "f", f'{{"x": [{lists}]}}'),))])
    assert kept.get("a") is not None
    lists = f"{lists}, {lists}, {lists}"
    kept.add("b", b"", [Message("assistant", "", (ToolCall("c", "f", f'{{"x": [{lists}]}}'),))])
    assert kept.get("b") is None
