"""Requests as tokens and sampling parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from app.chat.messages import Message
from app.chat.prompt import PromptTokenizer
from app.chat.template.template import choose_template
from app.config.contexts import Context
from app.config.settings import SettingsError, load
from app.engine.llama import Model
from app.service import BadRequest, ChatPrompt, JSONSchema, TextPrompt, TooLong, UnknownContext
from app.service.preparing.limits import TokenLimits
from app.service.preparing.preparation import Preparation

CONTEXTS = {
    "general": Context(prompt="Be brief."),
    "sql": Context(prompt="Write SQL.", temperature=0.5, max_tokens=7),
}


@pytest.fixture(scope="module")
def model() -> Any:
    from tests.conftest import MODEL

    model = Model(MODEL, vocab_only=True)
    yield model
    model.close()


@pytest.fixture
def prepare(model: Model) -> Callable[..., Preparation]:
    def make(limits: TokenLimits | None = None, **settings: Any) -> Preparation:
        template = choose_template(None, special_tokens={}, vocabulary=model.vocab.control_tokens)
        return Preparation(
            load(env_file=None, **settings),
            CONTEXTS,
            model.vocab,
            PromptTokenizer(model.vocab, template),
            limits or TokenLimits(255, 256),
        )

    return make


def test_parameters_of_the_request_precede_those_of_context_and_settings(
    prepare: Callable[..., Preparation],
) -> None:
    preparation = prepare(temperature=0.1, top_p=0.3, model_max_token=9)
    chat = ChatPrompt((Message("user", "x"),), "sql")
    params = preparation.prepare(chat, {"top_k": 3}).params
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.5, 0.3, 3, 7)
    assert preparation.prepare(chat, {"max_tokens": 8}).params.max_tokens == 8
    assert preparation.prepare(TextPrompt("x"), {}).params.max_tokens == 9, "a text prompt has no context"


def test_a_suffix_needs_fill_in_the_middle_tokens(
    prepare: Callable[..., Preparation], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadRequest, match="no fill-in-the-middle tokens") as error:
        prepare().tokens(TextPrompt("before", suffix="behind"))
    assert error.value.field == "suffix"
    # The default model has no fill-in-the-middle tokens, so the test uses three other tokens.
    monkeypatch.setattr(model.vocab, "fill_in", (4, 5, 6))

    def text_tokens(text: str) -> list[int]:
        return model.vocab.tokenize(text, parse_special=False)

    tokens = prepare().tokens(TextPrompt("before <|im_end|>", suffix=" behind"))
    assert tokens == [4, *text_tokens("before <|im_end|>"), 5, *text_tokens(" behind"), 6]


def test_truncate_removes_the_beginning(prepare: Callable[..., Preparation]) -> None:
    whole = prepare().tokens(TextPrompt("one two three four five"))
    assert prepare().tokens(TextPrompt("one two three four five", truncate=2)) == whole[-2:]
    assert prepare().tokens(TextPrompt("one two", truncate=99)) == whole[:2]


@pytest.mark.parametrize(
    ("prompt", "overrides", "kind", "field"),
    [
        (TextPrompt("word " * 300), {}, TooLong, "prompt"),
        (TextPrompt("word " * 300, field="inputs"), {}, TooLong, "inputs"),
        (ChatPrompt((Message("user", "word " * 300),)), {}, TooLong, "messages"),
        (TextPrompt("word", reduces_max_tokens=False), {"max_tokens": 256}, TooLong, "max_tokens"),
        (TextPrompt(tokens=(-1,)), {}, BadRequest, "prompt"),
        (TextPrompt(""), {}, BadRequest, "prompt"),
        (TextPrompt("x"), {"logit_bias": {10**6: 1.0}}, BadRequest, "logit_bias"),
        (ChatPrompt((Message("user", "x"),), "nowhere"), {}, UnknownContext, "context"),
    ],
)
def test_rejected_requests_name_the_field(
    prompt: Any, overrides: Any, kind: Any, field: str, prepare: Callable[..., Preparation]
) -> None:
    with pytest.raises(kind) as error:
        prepare().prepare(prompt, overrides)
    assert error.value.field == field


def test_the_prompt_has_its_own_limit(prepare: Callable[..., Preparation]) -> None:
    preparation = prepare(TokenLimits(4, 256))
    assert preparation.prepare(TextPrompt("a b c d"), {}).params.max_tokens == 252
    with pytest.raises(TooLong, match="MAX_INPUT_LENGTH"):
        preparation.prepare(TextPrompt("a b c d e"), {})


def test_a_strict_schema_is_rejected_by_field_and_another_is_loosened_with_a_log_line(
    prepare: Callable[..., Preparation], caplog: pytest.LogCaptureFixture
) -> None:
    schema = {"properties": {"secret": {"uniqueItems": True}}}
    with pytest.raises(BadRequest, match="unsupported: uniqueItems at #/properties/secret") as error:
        prepare().prepare(TextPrompt("x"), {}, JSONSchema(schema, "response_format", strict=True))
    assert error.value.field == "response_format"
    with caplog.at_level("INFO", "tokenstream.service"):
        assert prepare().prepare(TextPrompt("x"), {}, JSONSchema(schema, "response_format")).params.grammar
    [record] = caplog.records
    assert record.message == "response_format: the answer is not constrained by uniqueItems"


def test_limits_are_those_of_the_settings_within_the_context_size() -> None:
    assert TokenLimits.of(load(env_file=None), 100) == TokenLimits(99, 100)
    assert TokenLimits.of(load(env_file=None, max_total_tokens=50), 100) == TokenLimits(49, 50)
    assert TokenLimits.of(load(env_file=None, max_input_length=30), 100) == TokenLimits(30, 100)
    for wrong, setting in (
        ({"max_total_tokens": 101}, "N_CTX"),
        ({"max_input_length": 100}, "MAX_INPUT_LENGTH"),
    ):
        with pytest.raises(SettingsError, match=setting):
            TokenLimits.of(load(env_file=None, **wrong), 100)
