"""POST /generate: parameters and the format of the answer."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from tests.api.tgi.tgi_calls import FRANCE, generate, post, text

SAY_HI = "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\n"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "rivers": {"enum": [1, 2]}},
    "required": ["city", "rivers"],
    "additionalProperties": False,
}
SAMPLING = {"do_sample": True, "seed": 5, "max_new_tokens": 16}


def test_an_answer_has_details_on_request_only(server_url: str) -> None:
    answer = generate(server_url)
    assert answer.keys() == {"generated_text"}
    assert "Paris" in answer["generated_text"]


def test_details_describe_every_token(server_url: str) -> None:
    answer = generate(server_url, details=True, max_new_tokens=5)
    details = answer["details"]
    assert details.keys() == {"finish_reason", "generated_tokens", "seed", "prefill", "tokens"}
    assert (details["finish_reason"], details["generated_tokens"]) == ("length", 5)
    assert (details["seed"], details["prefill"]) == (None, [])
    assert len(details["tokens"]) == 5
    for token in details["tokens"]:
        assert token.keys() == {"id", "text", "logprob", "special"}
        assert token["logprob"] < 0
        assert token["special"] is False
    assert "".join(token["text"] for token in details["tokens"]) == answer["generated_text"]


def test_generation_is_greedy_by_default(server_url: str) -> None:
    greedy = text(server_url, max_new_tokens=16)
    assert text(server_url, max_new_tokens=16, do_sample=False, seed=3) == greedy
    assert text(server_url, max_new_tokens=16, temperature=1.0) == greedy, (
        "a temperature of 1 is ignored, as in TGI"
    )
    default = httpx.post(f"{server_url}/generate", json={"inputs": FRANCE}, timeout=60).json()
    assert default["generated_text"].startswith(greedy)


def test_equal_seeds_give_equal_answers(server_url: str) -> None:
    sampled = text(server_url, **SAMPLING)
    assert text(server_url, **SAMPLING) == sampled
    assert text(server_url, **SAMPLING | {"seed": 6}) != sampled
    assert generate(server_url, **SAMPLING, details=True)["details"]["seed"] == 5
    random = generate(server_url, do_sample=True, max_new_tokens=16, details=True)
    again = text(server_url, do_sample=True, max_new_tokens=16, seed=random["details"]["seed"])
    assert again == random["generated_text"]
    assert generate(server_url, do_sample=True, seed=2**64 - 1, details=True)["details"]["seed"] == 2**64 - 1


@pytest.mark.parametrize(
    "sampling", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}, {"temperature": 1e-40}], ids=str
)
def test_sampling_from_one_token_equals_greedy(sampling: dict[str, Any], server_url: str) -> None:
    assert text(server_url, max_new_tokens=16, seed=5, **sampling) == text(server_url, max_new_tokens=16)


@pytest.mark.parametrize(
    "sampling", [{"top_k": 2}, {"top_p": 0.5}, {"typical_p": 0.2}, {"temperature": 2.5}], ids=str
)
def test_sampling_parameters_enable_sampling(sampling: dict[str, Any], server_url: str) -> None:
    answer = generate(server_url, max_new_tokens=16, seed=5, details=True, **sampling)
    assert answer["details"]["seed"] == 5
    assert answer["generated_text"] != text(server_url, **SAMPLING)


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 1.9}, {"frequency_penalty": 2.0}, {"watermark": True}], ids=str
)
def test_penalties_and_watermark_change_the_greedy_answer(penalty: dict[str, Any], server_url: str) -> None:
    inputs = "One two one two one two one two"
    plain = text(server_url, inputs=inputs, max_new_tokens=24)
    assert text(server_url, inputs=inputs, max_new_tokens=24, **penalty) != plain


def test_the_repetition_penalty_covers_the_whole_prompt(server_url: str) -> None:
    """The repetition is further back than the default ``repeat_last_n`` of other dialects."""
    inputs = "Zebra. " + "a b c d e f g h " * 10 + "The animal that I named first is the"
    penalized = generate(server_url, inputs=inputs, repetition_penalty=9.9, details=True, max_new_tokens=24)
    prompt = {token["text"] for token in httpx.post(f"{server_url}/tokenize", json={"inputs": inputs}).json()}
    answer = [token["text"] for token in penalized["details"]["tokens"]]
    assert len(set(answer)) == len(answer)
    assert prompt.isdisjoint(answer[:8])


def test_a_stop_sequence_stays_in_the_text(server_url: str) -> None:
    plain = text(server_url, max_new_tokens=16)
    stop = plain[3:7]
    answer = generate(server_url, max_new_tokens=16, stop=["absent", stop], details=True)
    assert answer["generated_text"] == plain[: plain.index(stop) + 4]
    assert answer["details"]["finish_reason"] == "stop_sequence"


def test_an_end_token_is_in_the_details_but_not_in_the_text(server_url: str) -> None:
    # Rounding differs between CPUs and batches, so a single answer may not end.
    questions = ("Say hi.", "What is the capital of France?", "What color is the sky?", "Name a fruit.")
    prompts = [SAY_HI.replace("Say hi.", question) for question in questions]
    answers = [generate(server_url, inputs=text, max_new_tokens=200, details=True) for text in prompts]
    answer = next(a for a in answers if a["details"]["finish_reason"] == "eos_token")
    *generated, last = answer["details"]["tokens"]
    assert (last["text"], last["special"]) == ("<|im_end|>", True)
    assert answer["details"]["generated_tokens"] == len(generated) + 1
    assert "".join(token["text"] for token in generated) == answer["generated_text"]


def test_top_tokens_are_sorted_and_include_the_token(server_url: str) -> None:
    details = generate(server_url, details=True, top_n_tokens=3)["details"]
    assert len(details["top_tokens"]) == len(details["tokens"])
    for chosen, top in zip(details["tokens"], details["top_tokens"], strict=True):
        assert len(top) == 3
        assert top[0] == chosen, "the answer is greedy"
        assert sorted(top, key=lambda token: -token["logprob"]) == top


def test_best_of_returns_the_likeliest_and_the_others(server_url: str) -> None:
    parameters = {"best_of": 2, "do_sample": True, "max_new_tokens": 12, "top_n_tokens": 1}
    assert generate(server_url, **parameters).keys() == {"generated_text"}
    answer = generate(server_url, **parameters, details=True)
    best, [other] = answer["details"], answer["details"]["best_of_sequences"]
    assert other.keys() == {
        "generated_text", "finish_reason", "generated_tokens", "seed", "prefill", "tokens", "top_tokens"
    }  # fmt: skip
    assert best["seed"] != other["seed"]

    def mean(details: dict[str, Any]) -> float:
        return sum(token["logprob"] for token in details["tokens"]) / len(details["tokens"])

    assert mean(best) >= mean(other)
    for details, generated in ((best, answer["generated_text"]), (other, other["generated_text"])):
        assert text(server_url, do_sample=True, max_new_tokens=12, seed=details["seed"]) == generated


def test_decoder_input_details_have_the_logprobs_of_the_prompt(server_url: str) -> None:
    details = generate(server_url, decoder_input_details=True)["details"]
    assert "".join(token["text"] for token in details["prefill"]) == FRANCE
    first, *others = details["prefill"]
    assert first.keys() == {"id", "text", "logprob"}
    assert first["logprob"] is None
    assert all(token["logprob"] < 0 for token in others)


def test_truncate_removes_the_beginning_of_the_prompt(server_url: str) -> None:
    inputs = "Roses are red, violets are blue, sugar is sweet"
    tokens = httpx.post(f"{server_url}/tokenize", json={"inputs": inputs}).json()
    answer = generate(server_url, inputs=inputs, truncate=4, decoder_input_details=True)
    assert [token["id"] for token in answer["details"]["prefill"]] == [token["id"] for token in tokens[-4:]]
    end = "".join(token["text"] for token in tokens[-4:])
    assert text(server_url, inputs=end) == answer["generated_text"]
    assert text(server_url, inputs=inputs, truncate=2000) == text(server_url, inputs=inputs)


def test_return_full_text_puts_the_prompt_before_the_answer(server_url: str) -> None:
    assert text(server_url, return_full_text=True) == FRANCE + text(server_url)
    answer = generate(server_url, return_full_text=True, best_of=2, do_sample=True, details=True)
    assert answer["details"]["best_of_sequences"][0]["generated_text"].startswith(FRANCE)


@pytest.mark.parametrize(
    "grammar",
    [
        {"type": "json", "value": SCHEMA},
        {"type": "json", "value": json.dumps(SCHEMA)},
        {"type": "json_object", "value": SCHEMA},
        {"type": "json_schema", "value": {"name": "city", "schema": SCHEMA}},
    ],
    ids=lambda grammar: f"{grammar['type']}-{type(grammar['value']).__name__}",
)
def test_a_grammar_can_be_a_json_schema(grammar: dict[str, Any], server_url: str) -> None:
    answer = generate(server_url, grammar=grammar, max_new_tokens=60, details=True, do_sample=True, seed=1)
    parsed = json.loads(answer["generated_text"])
    assert parsed.keys() == {"city", "rivers"}
    assert parsed["rivers"] in (1, 2)
    assert answer["details"]["finish_reason"] == "eos_token"


def test_a_grammar_can_be_a_regular_expression(server_url: str) -> None:
    pattern = r"[0-9]{3}-[a-f]{2}"
    assert re.fullmatch(
        pattern, text(server_url, grammar={"type": "regex", "value": pattern}, max_new_tokens=20)
    )


def test_texts_of_tokens_split_no_character(server_url: str) -> None:
    answer = generate(
        server_url, grammar={"type": "regex", "value": "[🦔🦩]{3}é"}, max_new_tokens=40, details=True
    )
    assert re.fullmatch("[🦔🦩]{3}é", answer["generated_text"])
    texts = [token["text"] for token in answer["details"]["tokens"]]
    assert "" in texts, "each character is several tokens"
    assert "".join(texts) == answer["generated_text"]


def test_unknown_fields_are_ignored(server_url: str) -> None:
    body = {"inputs": FRANCE, "parameters": {"max_new_tokens": 8, "colour": "red"}, "mood": 1}
    response = httpx.post(f"{server_url}/generate", json=body, timeout=60)
    assert response.json() == generate(server_url)


def test_a_long_prompt_shortens_the_default_max_new_tokens(narrow_url: str) -> None:
    body = {"inputs": "word " * 494, "parameters": {"details": True}}
    details = httpx.post(f"{narrow_url}/generate", json=body, timeout=60).json()["details"]
    assert 1 <= details["generated_tokens"] <= 18


@pytest.mark.parametrize("path", ["/", "/model/any/name", "/model/any/name/", "/invocations"])
def test_routes_for_whole_and_streamed_answers_return_whole_ones(path: str, server_url: str) -> None:
    expected = generate(server_url, details=True)
    [whole] = post(server_url, path, details=True, return_full_text=False).json()
    assert whole == expected
    [full] = post(server_url, path).json()
    assert full == {"generated_text": FRANCE + expected["generated_text"]}, "as on this route of TGI"
