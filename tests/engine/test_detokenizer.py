"""Text leaves whole: no half characters, no half stop strings, no special tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.detokenizer import Detokenizer
from app.engine.llama import Model, Vocab


@pytest.fixture(scope="module")
def vocab(model: Model) -> Vocab:
    return model.vocab


def test_a_character_of_many_tokens_comes_whole(vocab: Vocab) -> None:
    text = "日本 🧑‍🚀 🎉 ünï"
    tokens = vocab.tokenize(text, parse_special=False)
    assert len(vocab.piece(tokens[0])) < 3, "the test needs a character that takes several tokens"
    detokenizer = Detokenizer(vocab)
    parts = [detokenizer.push(t) for t in tokens]
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


def test_half_a_character_at_the_end_is_dropped(vocab: Vocab) -> None:
    tokens = vocab.tokenize("a🧑", parse_special=False)
    detokenizer = Detokenizer(vocab)
    assert "".join(detokenizer.push(t) for t in tokens[:-1]) + detokenizer.flush() == "a"


def test_a_byte_that_begins_no_character_is_left_out(vocab: Vocab) -> None:
    first_byte = vocab.tokenize("🧑", parse_special=False)[0]
    detokenizer = Detokenizer(vocab)
    tokens = [first_byte, *vocab.tokenize(" plain", parse_special=False)]
    assert "".join(detokenizer.push(t) for t in tokens) == " plain"


def test_special_tokens_add_no_text(vocab: Vocab) -> None:
    detokenizer = Detokenizer(vocab)
    assert [detokenizer.push(t) for t in vocab.control_tokens.values()] == [""] * len(vocab.control_tokens)


def test_a_stop_string_across_tokens_is_cut_off_whole(vocab: Vocab) -> None:
    detokenizer = Detokenizer(vocab, ["END OF"])
    out = "".join(
        detokenizer.push(t) for t in vocab.tokenize("one END two END OF three", parse_special=False)
    )
    assert out == "one END two "
    assert detokenizer.stopped_by == "END OF"
    assert detokenizer.flush() == ""


def test_what_only_looks_like_a_stop_string_comes_in_the_end(vocab: Vocab) -> None:
    detokenizer = Detokenizer(vocab, ["###"])
    pushed = "".join(detokenizer.push(t) for t in vocab.tokenize("a ##", parse_special=False))
    assert pushed == "a "
    assert detokenizer.flush() == "##"


def test_the_earliest_stop_string_counts_and_of_two_there_the_longer(vocab: Vocab) -> None:
    detokenizer = Detokenizer(vocab, ["b", "bc", "d"])
    text = "".join(detokenizer.push(t) for t in vocab.tokenize("abcd", parse_special=False))
    assert text == "a"
    assert detokenizer.stopped_by in ("b", "bc")


@given(
    text=st.text("ab\n🎉", max_size=30), stops=st.lists(st.text("ab\n🎉", min_size=1, max_size=4), max_size=3)
)
def test_any_text_with_any_stops_ends_before_the_first_that_is_complete(
    vocab: Vocab, text: str, stops: list[str]
) -> None:
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
