"""POST /generate_stream, and streams of the other routes."""

from __future__ import annotations

import httpx
import pytest

from tests.api.tgi.tgi_calls import FRANCE, events, generate, post, stream, text
from tests.polling import figure, wait_until_none_runs

# The grammar needs more tokens, so the model cannot end the answer.
ENDLESS = {"max_new_tokens": 2000, "grammar": {"type": "regex", "value": "[a-z ]{9000}"}}


def test_every_token_has_an_event(server_url: str) -> None:
    parts = stream(server_url, max_new_tokens=12)
    whole = generate(server_url, max_new_tokens=12, details=True)
    assert [part["index"] for part in parts] == list(range(1, 13))
    assert all(part.keys() == {"index", "token", "generated_text", "details"} for part in parts)
    assert [part["token"]["id"] for part in parts] == [token["id"] for token in whole["details"]["tokens"]]
    assert "".join(part["token"]["text"] for part in parts) == whole["generated_text"]
    assert [part["generated_text"] for part in parts] == [None] * 11 + [whole["generated_text"]]
    assert all(part["details"] is None for part in parts)


def test_details_are_in_the_last_event(server_url: str) -> None:
    *parts, last = stream(
        server_url, inputs="Once upon a time", details=True, do_sample=True, seed=9, max_new_tokens=6
    )
    assert all(part["details"] is None for part in parts)
    assert last["details"] == {
        "finish_reason": "length",
        "generated_tokens": 6,
        "seed": 9,
        "input_length": 4,
    }
    assert last["generated_text"] == "".join(part["token"]["text"] for part in [*parts, last])


def test_every_event_has_top_tokens(server_url: str) -> None:
    for part in stream(server_url, top_n_tokens=2):
        assert len(part["top_tokens"]) == 2
        assert part["top_tokens"][0] == part["token"]


def test_a_stop_sequence_stays_in_the_text(server_url: str) -> None:
    plain = text(server_url, max_new_tokens=16)
    parts = stream(server_url, max_new_tokens=16, stop=[plain[3:7]], details=True)
    assert parts[-1]["generated_text"] == "".join(part["token"]["text"] for part in parts) == plain[:7]
    assert parts[-1]["details"]["finish_reason"] == "stop_sequence"


def test_return_full_text_puts_the_prompt_before_the_answer(server_url: str) -> None:
    parts = stream(server_url, return_full_text=True)
    assert parts[-1]["generated_text"] == FRANCE + "".join(part["token"]["text"] for part in parts)


@pytest.mark.parametrize("path", ["/", "/model/any/name/", "/invocations"])
def test_routes_for_whole_and_streamed_answers_can_stream(path: str, server_url: str) -> None:
    expected = stream(server_url)
    streamed = events(post(server_url, path, stream=True, return_full_text=False))
    assert [part["token"]["id"] for part in streamed] == [part["token"]["id"] for part in expected]
    assert streamed[-1]["generated_text"] == expected[-1]["generated_text"]
    assert isinstance(post(server_url, path, stream=False).json(), list)


def test_a_disconnect_ends_the_answer(server_url: str) -> None:
    before = figure(server_url, "generated_tokens_total")
    body = {"inputs": "Once upon a time", "parameters": ENDLESS}
    with httpx.stream("POST", f"{server_url}/generate_stream", json=body, timeout=30) as response:
        parts = response.iter_bytes()  # the connection closes when this iterator is collected
        next(parts)
        assert figure(server_url, "running_requests") == 1
    wait_until_none_runs(server_url)
    assert figure(server_url, "generated_tokens_total") - before < 2000


def test_a_disconnect_ends_all_answers_of_best_of(server_url: str) -> None:
    before = figure(server_url, "generated_tokens_total")
    body = {"inputs": "Once upon a time", "parameters": ENDLESS | {"best_of": 2, "do_sample": True}}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server_url}/generate", json=body, timeout=httpx.Timeout(20, read=2))
    wait_until_none_runs(server_url)
    assert figure(server_url, "generated_tokens_total") - before < 2000
