"""``/v1/decisions`` by OpenAI's client."""

from __future__ import annotations

import httpx
import openai
import pytest

INPUT = "I was charged twice. Please refund me today."
QUESTIONS = [
    {"type": "predicate", "name": "billing", "instructions": "The message is about billing."},
    {
        "type": "choice",
        "instructions": [{"type": "input_json", "data": {"task": "Is a reply needed?"}}],
        "choices": [{"value": True}, {"value": "true", "description": "a text"}, {"value": False}],
    },
    {"type": "score", "instructions": "Urgency", "levels": [{"label": "low"}, {"label": "high"}]},
]


def test_answers_are_in_the_order_of_questions_with_typed_values_and_cached_tokens(server_url: str) -> None:
    client = openai.OpenAI(base_url=f"{server_url}/v1", api_key="any")
    made = client.decisions.create(model="any", input=INPUT, questions=QUESTIONS)  # type: ignore[arg-type]
    predicate, choice, score = made.answers
    assert (predicate.type, predicate.name) == ("predicate", "billing")
    assert 0 < predicate.probability < 1
    assert [option.value for option in choice.probabilities] == [True, "true", False]
    assert [type(option.value) for option in choice.probabilities] == [bool, str, bool]
    assert sum(option.probability for option in choice.probabilities) == pytest.approx(1)
    assert [(level.value, level.label) for level in score.probabilities] == [(0, "low"), (1, "high")]
    again = client.decisions.create(model="any", input=INPUT, questions=QUESTIONS)  # type: ignore[arg-type]
    assert again.answers == made.answers
    before, after = made.usage.input_tokens_details, again.usage.input_tokens_details
    assert before.cache_write_tokens > 0
    assert before.cached_tokens + before.cache_write_tokens <= after.cached_tokens < again.usage.input_tokens
    assert after.cache_write_tokens == 0


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}, "input_image"),
        ({"type": "function_call_output", "call_id": "c1", "output": "x"}, "'c1' is no call before it"),
    ],
)
def test_images_and_outputs_without_a_call_are_rejected_by_name(
    server_url: str, item: dict[str, object], message: str
) -> None:
    body = {"input": [item], "questions": QUESTIONS[:1]}
    response = httpx.post(f"{server_url}/v1/decisions", json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
    assert "input.0" in response.json()["error"]["message"]


def test_a_conversation_with_calls_is_answered(server_url: str) -> None:
    items = [
        {"role": "user", "content": "What is the weather?"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
    ]
    body = {"input": items, "questions": QUESTIONS[:1]}
    response = httpx.post(f"{server_url}/v1/decisions", json=body)
    assert response.status_code == 200, response.text
