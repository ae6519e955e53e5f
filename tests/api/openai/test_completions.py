"""/v1/completions with OpenAI's client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

PROMPT = "The days of the week are Monday, Tuesday,"


def test_a_stream_equals_the_whole_completion(client: openai.OpenAI, model_name: str) -> None:
    whole = client.completions.create(model="m", prompt=PROMPT, max_tokens=8, temperature=0)
    assert whole.object == "text_completion"
    assert whole.model == model_name
    assert "Wednesday" in whole.choices[0].text
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    *chunks, last = client.completions.create(
        model="m",
        prompt=PROMPT,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens


def test_a_prompt_has_no_template_and_no_context(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="m", prompt="a b", max_tokens=1)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 2


def test_markup_in_a_prompt_is_tokenized_as_control_tokens(client: openai.OpenAI) -> None:
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    answer = client.completions.create(model="m", prompt=prompt, max_tokens=40, temperature=0)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens < 15


def test_choices_are_ordered_by_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="m", prompt=["One, two,", "A, B,"], n=2, max_tokens=4, temperature=0.1, seed=1, echo=True
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text.startswith("One, two,") for choice in answer.choices] == [True, True, False, False]
    assert [choice.text.startswith("A, B,") for choice in answer.choices] == [False, False, True, True]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_a_prompt_can_be_a_list_of_tokens(client: openai.OpenAI) -> None:
    one = client.completions.create(model="m", prompt=[504, 253], max_tokens=2, temperature=0, echo=True)
    two = client.completions.create(
        model="m", prompt=[[504, 253], [504]], max_tokens=2, temperature=0, echo=True
    )
    assert two.choices[0].text == one.choices[0].text
    assert len(two.choices) == 2
    with pytest.raises(openai.BadRequestError, match="vocabulary") as error:
        client.completions.create(model="m", prompt=[10**7], max_tokens=2)
    assert error.value.param == "prompt"


def test_echo_without_new_tokens_scores_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="m", prompt=PROMPT, max_tokens=0, echo=True, logprobs=2)
    [choice] = answer.choices
    assert choice.text == PROMPT
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert "".join(logprobs.tokens) == PROMPT
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert logprobs.text_offset == [
        PROMPT.index(t, o) for t, o in zip(logprobs.tokens, logprobs.text_offset or [], strict=True)
    ]
    assert logprobs.top_logprobs is not None
    assert len(logprobs.top_logprobs[1]) == 2
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    streamed = list(
        client.completions.create(model="m", prompt=PROMPT, max_tokens=0, echo=True, logprobs=2, stream=True)
    )
    assert streamed[0].choices[0].text == PROMPT


def test_logprobs_of_prompt_and_answer_are_one_list(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> Any:
        return client.completions.create(
            model="m", prompt=PROMPT, max_tokens=4, temperature=0, echo=True, logprobs=1, **more
        )

    whole = ask().choices[0]
    assert "".join(whole.logprobs.tokens) == whole.text
    chunks = [chunk.choices[0].logprobs for chunk in ask(stream=True) if chunk.choices[0].logprobs]
    assert [token for chunk in chunks for token in chunk.tokens] == whole.logprobs.tokens
    assert [offset for chunk in chunks for offset in chunk.text_offset] == whole.logprobs.text_offset


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": "word " * 5000}, "prompt"),
    ],
)
def test_invalid_fields_are_rejected_by_name(
    fields: dict[str, Any], param: str, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.post("/completions", body={"model": "m", "prompt": PROMPT} | fields, cast_to=object)
    assert error.value.param == param, error.value.body
