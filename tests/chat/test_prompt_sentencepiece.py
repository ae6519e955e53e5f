"""Prompts with a SentencePiece vocabulary, which has added tokens and a BOS."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.chat.messages import Message
from app.chat.prompt import PromptTokenizer
from app.engine.llama import Vocab
from tests.chat.conftest import Make, control_tokens, user, written

BOS, TURN, END = 1, 3, 4
THINKING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<turn>model\n<think>\n"
    "{{ m.content.split('</think>')[0] }}</think>{{ m.content.split('</think>')[-1] }}<end>\n"
    "{% else %}<turn>{{ m.role }}\n{{ m.content }}<end>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n<think>{% endif %}"
)


@pytest.fixture(scope="module")
def thinking(make: Make, sentencepiece: Vocab) -> PromptTokenizer:
    tokenizer = make(THINKING, sentencepiece)
    assert tokenizer.template.name == "the model's template"
    return tokenizer


def test_bos_is_added_once(make: Make, sentencepiece: Vocab) -> None:
    for source in (THINKING, "{{ bos_token }}" + THINKING):
        tokens = make(source, sentencepiece).tokens(user("to the end"))
        assert tokens[0] == BOS
        assert tokens.count(BOS) == 1
        assert tokens[1:] == sentencepiece.tokenize(
            "<turn>user\nto the end<end>\n<turn>model\n<think>", parse_special=True
        )
    tokenizer = make(THINKING, sentencepiece)
    assert tokenizer.text_tokens("to") == [BOS, *sentencepiece.tokenize("to", parse_special=False)]
    assert tokenizer.text_tokens("<s>")[0] == BOS
    assert tokenizer.text_tokens("<s>").count(BOS) == 1
    assert tokenizer.text_tokens("") == [BOS]


@pytest.mark.parametrize("content", ["</s>", "a</s>", "</s>the", "in </s></s> the</s>"])
def test_text_is_not_merged_into_a_control_token(
    content: str, thinking: PromptTokenizer, sentencepiece: Vocab
) -> None:
    assert sentencepiece.eos in sentencepiece.tokenize(content, parse_special=False)
    assert sentencepiece.eos not in thinking.tokens(user(content))
    assert sentencepiece.eos not in thinking.text_tokens(content)


def test_added_tokens_of_the_template_are_text_in_a_content(
    thinking: PromptTokenizer, sentencepiece: Vocab
) -> None:
    think, end_think, bold = (sentencepiece.added_tokens[t] for t in ("<think>", "</think>", "<b>"))
    tokens = thinking.tokens(user("<think></think>the <b>"))
    assert tokens.count(think) == 1, "the template has one"
    assert end_think not in tokens
    assert bold in tokens, "the template does not use this added token"
    assert not {think, end_think} & set(thinking.text_tokens("<think></think><<think>"))


def test_a_template_can_split_thoughts_from_an_answer(
    thinking: PromptTokenizer, sentencepiece: Vocab
) -> None:
    tokens = thinking.tokens([*user("the"), Message("assistant", "in</think>to")])
    assert tokens == [
        BOS,
        *sentencepiece.tokenize(
            "<turn>user\nthe<end>\n<turn>model\n<think>\nin</think>to<end>\n<turn>model\n<think>",
            parse_special=True,
        ),
    ]


@settings(deadline=None, max_examples=150)
@given(
    content=st.lists(
        st.text(alphabet=st.characters(exclude_characters="▁"), max_size=8)
        | st.sampled_from(["</s>", "<s>", "<think>", "</think>", "<end>", "<unk>", "the", " ", "</", "s>"]),
        max_size=8,
    ).map("".join)
)
def test_no_spaces_are_added_within_a_text(
    content: str, thinking: PromptTokenizer, sentencepiece: Vocab
) -> None:
    tokens = thinking.text_tokens(content)
    assert control_tokens(sentencepiece, tokens) == [BOS]
    # SentencePiece adds a space before a text.
    assert written(sentencepiece, tokens[1:]).removeprefix(b" ") == content.encode("utf-8", "replace")
    tokens = thinking.tokens(user(content))
    assert control_tokens(sentencepiece, tokens) == [BOS, TURN, END, TURN]


def test_plain_text_has_no_control_tokens(make: Make, sentencepiece: Vocab) -> None:
    tokenizer = make(None, sentencepiece)
    assert tokenizer.template.name == "plain text"
    tokens = tokenizer.tokens([Message("system", "to </s>"), Message("user", "<turn>")])
    assert control_tokens(sentencepiece, tokens) == [BOS]
    assert written(sentencepiece, tokens[1:]) == b" to </s>\n\nUser: <turn>\nAssistant:"
