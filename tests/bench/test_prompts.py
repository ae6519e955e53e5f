"""Prompts are equal for all servers and have the requested length."""

from __future__ import annotations

import pytest

from app.chat.messages import Message
from app.chat.prompt import PromptTokenizer
from app.chat.template.template import choose_template
from app.engine.llama import Model
from bench.prompts import PLAIN, Context, Prompts, Question, Texts
from bench.workloads import topics
from tests.conftest import MODEL

CHAT = (Message("user", "Geese?"), Message("assistant", "Mostly."), Message("user", "And swallows?"))


@pytest.mark.parametrize("messages", [CHAT[:1], CHAT])
@pytest.mark.parametrize("context", [PLAIN, Context("birds", "You know all birds.")])
def test_a_rendered_prompt_has_the_tokens_of_our_server(
    prompts: Prompts, context: Context, messages: tuple[Message, ...]
) -> None:
    model = Model(MODEL, vocab_only=True)
    vocab = model.vocab
    special = {"bos_token": vocab.text(vocab.bos), "eos_token": vocab.text(vocab.eos)}
    template = choose_template(
        model.chat_template, special_tokens=special, vocabulary=vocab.control_tokens | vocab.added_tokens
    )
    tokens = PromptTokenizer(vocab, template).tokens([Message("system", context.prompt), *messages])
    prompt = prompts.render(Question(messages, context))
    assert tokens == vocab.tokenize(prompt, parse_special=True)
    assert prompts.n_tokens(prompt) == len(tokens)
    template.close()
    model.close()


@pytest.mark.parametrize("n_tokens", [12, 135, 700])
def test_texts_have_the_requested_length(prompts: Prompts, n_tokens: int) -> None:
    texts = Texts(prompts, "a seed")
    assert prompts.n_tokens(texts.text(n_tokens)) == pytest.approx(n_tokens, abs=2)


def test_the_length_of_a_question_includes_context_and_template(prompts: Prompts) -> None:
    question = Texts(prompts, "a seed").question(135)
    assert prompts.n_tokens(prompts.render(question)) == pytest.approx(135, abs=2)
    assert PLAIN.prompt in prompts.render(question)


def test_equal_seeds_give_equal_texts(prompts: Prompts) -> None:
    def some_texts(seed: str) -> list[str]:
        texts = Texts(prompts, seed)
        return [texts.text(20) for _ in range(20)]

    assert some_texts("a") == some_texts("a")
    assert len({*some_texts("a"), *some_texts("b")}) == 40


def test_the_topics_are_long_and_have_no_common_prefix(prompts: Prompts) -> None:
    plain, *long_ones = topics(prompts)
    assert plain == PLAIN
    assert [prompts.n_tokens(context.prompt) for context in long_ones] == pytest.approx([700] * 6, abs=2)
    assert len({tuple(context.prompt.split()[:2]) for context in long_ones}) == 6
