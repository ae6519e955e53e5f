"""Choices of contexts: their tokens, and draws from their probabilities."""

from __future__ import annotations

from collections import Counter

import pytest

from app.config.contexts import Context
from app.config.settings import Settings
from app.engine.llama import Model
from app.service.errors import BadRequest
from app.service.model.choosing import drawn
from app.service.model.parts import make_tokenizer
from app.service.preparing.choices import choices_of


def test_a_choice_that_begins_another_one_is_scored_with_its_end(model: Model) -> None:
    context = Context(prompt="", choices={"lamp": "", "lamp post": "", "sea": ""})
    choices = choices_of(context, model.vocab, make_tokenizer(Settings(), model, None))
    texts = [b"".join(map(model.vocab.piece, tokens)).decode() for tokens in choices.tokens]
    assert texts == list(choices.names)
    assert [option[-1] == model.vocab.eos for option in choices.options] == [True, False, False]


def test_a_choice_without_tokens_is_named(model: Model) -> None:
    context = Context(prompt="", choices={"lamp": "", "\x04": ""})  # the vocabulary lacks this byte
    with pytest.raises(BadRequest, match=r"choice '\\x04' has no tokens"):
        choices_of(context, model.vocab, make_tokenizer(Settings(), model, None))


def test_draws_follow_the_probabilities_at_the_temperature() -> None:
    probabilities = [0.2, 0.8, 0.0]
    assert drawn(probabilities, 0, 1) == 1
    for temperature, share in ((1.0, 0.8), (2.0, 2 / 3), (1e-5, 1.0)):
        counts = Counter(drawn(probabilities, temperature, seed) for seed in range(4000))
        assert counts[1] / 4000 == pytest.approx(share, abs=0.03)
        assert counts[2] == 0
