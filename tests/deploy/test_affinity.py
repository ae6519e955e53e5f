"""Keys of requests, and the choice of a server."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from starlette.datastructures import Headers

from app.deploy.affinity import by_preference, chosen, routing_key
from app.deploy.metrics import merged

SYSTEM = "You know all stations. " * 30


def key(body: Any) -> str:
    return routing_key(Headers(), json.dumps(body).encode())


def conversation(*turns: str, parts: bool = False) -> dict[str, Any]:
    contents: list[Any] = [[{"type": "text", "text": turn}] if parts else turn for turn in turns]
    roles = ["system", *["user", "assistant"] * len(turns)]
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]}


def test_requests_with_one_system_prompt_share_a_key() -> None:
    first = key(conversation(SYSTEM, "Why?"))
    assert key(conversation(SYSTEM, "How?", "So.", "And?")) == first
    assert key(conversation(SYSTEM, "Why?", parts=True)) == first
    assert key({"system": SYSTEM, "messages": [{"role": "user", "content": "Why?"}]}) == first
    assert key(conversation("Not " + SYSTEM, "Why?")) != first


def test_short_conversations_differ_by_their_question() -> None:
    assert key({"query": "Why?"}) != key({"query": "How?"})


def test_a_key_of_the_client_takes_precedence() -> None:
    assert routing_key(Headers({"x-prefix-key": "mine"}), b"{}") == "mine"


def test_bodies_without_a_prompt_share_a_key() -> None:
    nested = b"[" * 100_000
    assert len({routing_key(Headers(), body) for body in (b"", b"{", b"[]", b'"x"', nested)}) == 1


def test_a_lost_server_moves_only_its_own_keys() -> None:
    names = ["a", "b", "c", "d"]
    first = {f"key {i}": by_preference(f"key {i}", names)[0] for i in range(400)}
    assert min(Counter(first.values()).values()) > 60
    for name, server in first.items():
        rest = by_preference(name, ["a", "b", "d"])[0]
        assert rest == server or server == "c"


def test_an_overloaded_server_is_passed_over() -> None:
    assert chosen(["a", "b"], {"a": 4}, slack=4) == "a"
    assert chosen(["a", "b"], {"a": 5}, slack=4) == "b"
    assert chosen(["a", "b"], {"a": 5, "b": 1}, slack=4) == "a"


def test_merged_metrics_have_each_head_once() -> None:
    head, sample = "# HELP x_total Number.\n# TYPE x_total counter\n", 'x_total{{instance="{}"}} 1.0\n'
    assert merged(head + sample.format(name) for name in "ab") == head + sample.format("a") + sample.format(
        "b"
    )
