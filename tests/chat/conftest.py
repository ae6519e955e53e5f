"""Vocabularies, prompt tokenizers and functions to inspect tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from app.chat.messages import Message
from app.chat.prompt import PromptTokenizer
from app.chat.template.template import ChatTemplate, choose_template
from app.engine.llama import Model, Vocab
from tests.conftest import MODEL
from tests.tiny_vocab import write_vocabulary

Make = Callable[..., PromptTokenizer]


@pytest.fixture(scope="module")
def vocab_model() -> Iterator[Model]:
    model = Model(MODEL, vocab_only=True)
    yield model
    model.close()


@pytest.fixture(scope="module")
def vocab(vocab_model: Model) -> Vocab:
    return vocab_model.vocab


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocab]:
    """A SentencePiece vocabulary with added tokens and a BOS."""
    model = Model(write_vocabulary(tmp_path_factory.mktemp("vocab") / "tiny.gguf"), vocab_only=True)
    assert model.vocab.is_sentencepiece
    assert model.vocab.add_bos
    yield model.vocab
    model.close()


@pytest.fixture(scope="module")
def make(vocab: Vocab) -> Iterator[Make]:
    """Make a tokenizer with a template, for the vocabulary of the default model or another one."""
    templates: list[ChatTemplate] = []

    def make(source: str | None, vocabulary: Vocab = vocab) -> PromptTokenizer:
        special = {"bos_token": vocabulary.text(vocabulary.bos), "eos_token": vocabulary.text(vocabulary.eos)}
        known = vocabulary.control_tokens
        templates.append(choose_template(source, special_tokens=special, vocabulary=known, time_limit=10))
        return PromptTokenizer(vocabulary, templates[-1])

    yield make
    for template in templates:
        template.close()


def control_tokens(vocab: Vocab, tokens: list[int]) -> list[int]:
    control = set(vocab.control_tokens.values())
    return [token for token in tokens if token in control]


def written(vocab: Vocab, tokens: list[int]) -> bytes:
    """The text of tokens, control tokens included."""
    control = set(vocab.control_tokens.values())
    return b"".join(vocab.text(t).encode() if t in control else vocab.piece(t) for t in tokens)


def user(content: str) -> list[Message]:
    return [Message("user", content)]
