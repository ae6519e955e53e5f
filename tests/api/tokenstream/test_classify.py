"""POST /classify over a real socket."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

TEXTS = ["Rude staff, dirty rooms, cold food.", "I love it, what a great day!", "The box is made of wood."]


def post(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/classify", json=body, timeout=60)


def test_texts_have_the_probabilities_of_the_answers_in_their_context(server_url: str) -> None:
    made = post(server_url, queries=TEXTS, context="classifier").json()
    assert [result["label"] for result in made["results"]] == ["bad", "good", "fact"]
    for text, result in zip(TEXTS, made["results"], strict=True):
        body = {"query": text, "context": "classifier", "details": True}
        answer, _, figures = httpx.post(f"{server_url}/token_stream", json=body).text.rpartition("\n\x1e")
        assert answer == result["label"]
        assert json.loads(figures)["probabilities"] == pytest.approx(result["probabilities"], abs=0.01)
        assert json.loads(figures)["label_mass"] == pytest.approx(result["label_mass"], abs=0.01)
    assert made["usage"]["cached_tokens"] > made["usage"]["input_tokens"] / 2, "the context is prefilled"
    single = post(server_url, query=TEXTS[0], context="classifier").json()
    assert {key: single[key] for key in made["results"][0]} == made["results"][0]


def test_choices_of_a_request_need_no_context_and_share_their_prefix(server_url: str) -> None:
    choices = {"kitchen": "food and cooking", "bank": "money", "harbour": "ships and ferries"}
    first = post(server_url, queries=[*TEXTS, "We boil the soup."], choices=choices).json()
    assert [set(result["probabilities"]) for result in first["results"]] == [set(choices)] * 4
    again = post(server_url, query="Another text.", choices=choices).json()
    assert again["usage"]["cached_tokens"] > 40
    listed = post(server_url, query="x", choices=["yes", "no"]).json()
    assert sum(listed["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"context": "classifier"}, 422, "query: is required, or queries instead"),
        ({"query": "x"}, 422, "context: context 'general' has no choices; contexts with choices: classifier"),
        ({"query": "x", "context": "cooking"}, 404, "context 'cooking' is not defined"),
        ({"query": "x", "context": "classifier", "choices": ["a", "b"]}, 422, "choices: cannot be combined"),
        ({"query": "x", "choices": ["a"]}, 422, "choices"),
        ({"query": "x", "choices": ["a", "a"]}, 422, "'a' is there twice"),
        ({"queries": ["x"] * 401, "context": "classifier"}, 422, "queries"),
        ({"queries": ["x", "word " * 3000], "context": "classifier"}, 422, "queries.1: this text in its"),
    ],
)
def test_an_invalid_request_names_the_field(
    server_url: str, body: dict[str, Any], status: int, message: str
) -> None:
    response = post(server_url, **body)
    assert response.status_code == status, response.text
    assert message in response.json()["error"]
