"""Contexts with choices, in every dialect that has contexts, by the clients of these dialects."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from tests.conftest import Server

pytestmark = pytest.mark.slow

CHOICES = {"good", "bad", "fact"}  # of the context "classifier"
QUERY = "Rude staff, a dirty room and cold food."
MESSAGES: Any = [{"role": "user", "content": QUERY}]
IN_CONTEXT = {"context": "classifier"}


@pytest.fixture
def client(server_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="any") as client:
        yield client


@pytest.fixture
def claude(server_url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server_url, api_key="any") as client:
        yield client


def details(url: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    body = {"query": QUERY, "details": True} | IN_CONTEXT | fields
    text, _, figures = httpx.post(f"{url}/token_stream", json=body, timeout=60).text.rpartition("\x1e")
    return text.removesuffix("\n"), json.loads(figures)


def test_an_answer_is_the_most_probable_choice_and_its_figures_have_all_probabilities(
    server_url: str,
) -> None:
    answer, figures = details(server_url)
    probabilities = figures["probabilities"]
    assert probabilities.keys() == CHOICES
    assert sum(probabilities.values()) == pytest.approx(1)
    assert answer == max(probabilities, key=probabilities.__getitem__) == "bad"
    assert 0 < figures["label_mass"] <= 1
    assert figures["cached_tokens"] < figures["prompt_tokens"], "tokens of the scoring are no cached ones"
    assert "probabilities" not in details(server_url, context="general", max_tokens=2)[1]


def test_answers_of_a_high_temperature_are_drawn_from_the_choices_by_their_seeds(server_url: str) -> None:
    answers = [
        details(server_url, temperature=9.0, seed=seed, stop=["o", "a"])[0] for seed in (*range(12), 0, 1, 2)
    ]
    assert set(answers) == CHOICES
    assert answers[:3] == answers[12:]


def test_clients_of_all_dialects_get_one_of_the_choices(
    client: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    made = client.chat.completions.create(
        model="any", messages=MESSAGES, n=6, temperature=2, seed=1, extra_body=IN_CONTEXT
    )
    texts = [choice.message.content for choice in made.choices]
    assert made.model_extra
    assert made.model_extra["probabilities"].keys() == CHOICES
    chunks = list(
        client.chat.completions.create(model="any", messages=MESSAGES, stream=True, extra_body=IN_CONTEXT)
    )
    texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    assert chunks[0].model_extra == {k: made.model_extra[k] for k in ("probabilities", "label_mass")}
    assert all("probabilities" not in (chunk.model_extra or {}) for chunk in chunks[1:])
    response = client.responses.create(model="any", input=QUERY, temperature=2, extra_body=IN_CONTEXT)
    texts.append(response.output_text)
    message = claude.messages.create(
        model="any", messages=MESSAGES, max_tokens=9, extra_body=IN_CONTEXT | {"temperature": 1}
    )
    texts += [block.text for block in message.content if block.type == "text"]
    assert len(texts) == 9
    assert set(texts) <= CHOICES


def test_a_request_in_such_a_context_cannot_constrain_its_answer_itself(
    client: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    tool = {"name": "f", "input_schema": {"type": "object"}}
    with pytest.raises(openai.BadRequestError, match=r"allows only the answers good, bad, fact") as error:
        client.chat.completions.create(
            model="any",
            messages=MESSAGES,
            response_format={"type": "json_object"},
            extra_body=IN_CONTEXT,
        )
    assert error.value.param == "response_format"
    with pytest.raises(anthropic.BadRequestError, match="tools: cannot be used: the context allows only"):
        claude.messages.create(
            model="any",
            messages=MESSAGES,
            max_tokens=9,
            tools=[tool],  # type: ignore[list-item]
            extra_body=IN_CONTEXT,
        )
    continued = [*MESSAGES, {"role": "assistant", "content": "The answer"}]
    with pytest.raises(openai.BadRequestError, match="cannot be continued"):
        client.chat.completions.create(model="any", messages=continued, extra_body=IN_CONTEXT)


def test_the_default_context_chooses_for_the_ollama_client_and_metrics_count_its_prompt_once(
    start_server: Callable[..., Server],
) -> None:
    url = start_server(CONTEXT_TYPE="classifier").wait_until().url
    with ollama.Client(url) as client:
        parts = list(client.chat("any", MESSAGES, stream=True, options={"temperature": 2, "seed": 1}))
        assert "".join(part.message.content or "" for part in parts) in CHOICES
        whole = client.generate("any", QUERY, options={"num_predict": 40, "stop": ["a", "o"]})
        assert (whole.response, whole.done_reason) == ("bad", "stop")
    metrics = httpx.get(f"{url}/metrics").text
    [queried] = re.findall(r"^prefix_cache_queries_total{.*} ([0-9.]+)$", metrics, re.MULTILINE)
    prompts = [part.prompt_eval_count or 0 for part in (parts[-1], whole)]
    assert float(queried) == sum(prompts) - len(prompts)  # the last token of each is its question


def test_a_model_with_thoughts_chooses_without_them(thinking_url: str) -> None:
    with openai.OpenAI(base_url=f"{thinking_url}/v1", api_key="any") as client:
        made = client.chat.completions.create(
            model="any", messages=MESSAGES, reasoning_effort="high", extra_body=IN_CONTEXT
        )
    assert made.choices[0].message.content in CHOICES
    assert not (made.choices[0].message.model_extra or {}).get("reasoning_content")
