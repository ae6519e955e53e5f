"""Tokens become text without incomplete characters, stop strings and control tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.detokenizer import Detokenizer
from app.engine.llama import Model, Vocab


@pytest.fixture(scope="module")
def vocab(model: Model) -> Vocab:
    return model.vocab


def test_a_character_of_several_tokens_is_returned_whole(vocab: Vocab) -> None:
    text = "日本 🧑‍🚀 🎉 ünï"
    tokens = vocab.tokenize(text, parse_special=False)
    assert len(vocab.piece(tokens[0])) < 3, "the first character is several tokens"
    detokenizer = Detokenizer(vocab)
    parts = [detokenizer.push(t) for t in tokens]
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


def test_an_incomplete_character_at_the_end_is_dropped(vocab: Vocab) -> None:
    tokens = vocab.tokenize("a🧑", parse_special=False)
    detokenizer = Detokenizer(vocab)
    assert "".join(detokenizer.push(t) for t in tokens[:-1]) + detokenizer.flush() == "a"


def test_a_byte_of_no_character_is_dropped(vocab: Vocab) -> None:
    first_byte = vocab.tokenize("🧑", parse_special=False)[0]
    detokenizer = Detokenizer(vocab)
    tokens = [first_byte, *vocab.tokenize(" plain", parse_special=False)]
    assert "".join(detokenizer.push(t) for t in tokens) == " plain"


def test_control_tokens_have_no_text(vocab: Vocab) -> None:
    detokenizer = Detokenizer(vocab)
    assert [detokenizer.push(t) for t in vocab.control_tokens.values()] == [""] * len(vocab.control_tokens)


def test_a_stop_string_across_tokens_is_removed(vocab: Vocab) -> None:
    detokenizer = Detokenizer(vocab, ["END OF"])
    out = "".join(
        detokenizer.push(t) for t in vocab.tokenize("one END two END OF three", parse_special=False)
    )
    assert out == "one END two "
    assert detokenizer.stopped_by == "END OF"
    assert detokenizer.flush() == ""


def test_an_incomplete_stop_string_is_returned_at_the_end(vocab: Vocab) -> None:
    detokenizer = Detokenizer(vocab, ["###"])
    pushed = "".join(detokenizer.push(t) for t in vocab.tokenize("a ##", parse_special=False))
    assert pushed == "a "
    assert detokenizer.flush() == "##"


def test_the_earliest_and_longest_stop_string_ends_the_text(vocab: Vocab) -> None:
    detokenizer = Detokenizer(vocab, ["b", "bc", "d"])
    [token] = vocab.tokenize("abc", parse_special=False)
    assert detokenizer.push(token) == "a"
    assert detokenizer.stopped_by == "bc"


@given(
    text=st.text("ab\n🎉", max_size=30), stops=st.lists(st.text("ab\n🎉", min_size=1, max_size=4), max_size=3)
)
def test_random_texts_end_before_the_first_stop_string(vocab: Vocab, text: str, stops: list[str]) -> None:
    detokenizer = Detokenizer(vocab, stops)
    out = ""
    for token in vocab.tokenize(text, parse_special=False):
        out += detokenizer.push(token)
        if detokenizer.stopped_by is not None:
            break
    out += detokenizer.flush()
    assert not any(stop in out for stop in stops)
    if detokenizer.stopped_by is None:
        assert out == text
    else:
        assert text.startswith(out + detokenizer.stopped_by)
