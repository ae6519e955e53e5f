"""Thoughts in the templates of model families."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.chat.messages import Message
from app.chat.prompt import PromptTokenizer
from app.chat.template.template import ChatTemplate, choose_template
from app.chat.template.thoughts import switches
from app.engine.llama import Vocab
from tests.chat import sample_templates

FOLDER = Path(__file__).parent.parent / "templates"
THINK = ("<think>", "</think>")
# File, marks, and whether the thought is open with the default, with thinking on, and with thinking off.
# None: the model decides.
FAMILIES: dict[str, tuple[tuple[str, str], tuple[bool | None, bool | None, bool | None]]] = {
    "Qwen-Qwen3-0.6B": (THINK, (None, None, False)),
    "Qwen3.5-4B": (THINK, (True, True, False)),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": (THINK, (True, True, True)),
    "openai-gpt-oss-120b": (("<|channel|>analysis<|message|>", "<|end|>"), (None, None, None)),
    "google-gemma-4-31B-it": (("<|channel>thought", "<channel|>"), (False, None, False)),
    "mistralai-Ministral-3-14B-Reasoning-2512": (("[THINK]", "[/THINK]"), (None, None, None)),
    "HuggingFaceTB-SmolLM3-3B": (THINK, (None, None, False)),
    "ibm-granite-granite-3.3-2B-Instruct": (THINK, (None, None, None)),
    "GLM-4.6": (THINK, (None, None, False)),
}
QUESTION = [Message("user", "Where is Paris?")]


def load(source: str, vocabulary: dict[str, int] | None = None) -> ChatTemplate:
    return choose_template(
        source,
        special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
        vocabulary=vocabulary or {},
        time_limit=20,
    )


@pytest.fixture(scope="module")
def families() -> Iterator[dict[str, ChatTemplate]]:
    loaded = {name: load((FOLDER / f"{name}.jinja").read_text()) for name in FAMILIES}
    yield loaded
    for template in loaded.values():
        template.close()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_marks_of_a_family_are_learned(name: str, families: dict[str, ChatTemplate]) -> None:
    marks = families[name].thoughts.marks
    assert marks is not None
    assert (marks.begin, marks.end) == FAMILIES[name][0]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_tells_whether_a_thought_is_open(
    name: str, families: dict[str, ChatTemplate], vocab: Vocab
) -> None:
    tokenizer = PromptTokenizer(vocab, families[name])
    options: tuple[dict[str, Any], ...] = ({}, switches(True), switches(False))
    for variables, expected in zip(options, FAMILIES[name][1], strict=True):
        thinking = tokenizer.chat(QUESTION, options=variables).thinking
        assert thinking is not None
        found = True if thinking.is_open else None if thinking.may_begin else False
        assert found == expected, variables


def test_a_thought_that_a_template_always_opens_is_closed_if_thinking_is_off(
    families: dict[str, ChatTemplate], vocab: Vocab
) -> None:
    tokenizer = PromptTokenizer(vocab, families["deepseek-ai-DeepSeek-R1-Distill-Llama-8B"])
    chat = tokenizer.chat(QUESTION, thinks=False)
    assert chat.thinking is not None
    assert not chat.thinking.is_open
    assert b"".join(map(vocab.piece, chat.tokens)).endswith(b"<think>\n\n</think>\n\n")
    continued = tokenizer.chat(
        [*QUESTION, Message("assistant", "It is", thoughts="Hm.")], continue_final=True
    )
    assert b"".join(map(vocab.piece, continued.tokens)).endswith(b"<think>\nHm.\n</think>\n\nIt is")


def test_text_of_a_question_does_not_open_a_thought(families: dict[str, ChatTemplate], vocab: Vocab) -> None:
    tokenizer = PromptTokenizer(vocab, families["Qwen-Qwen3-0.6B"])
    for question in ("Explain <think>", "</think>", "<think>\n", "<think></think>"):
        thinking = tokenizer.chat([Message("user", question)]).thinking
        assert thinking is not None
        assert not thinking.is_open
        assert thinking.may_begin


@pytest.mark.parametrize("name", ["llama 3", "gemma", "mistral", "chatml", "phi 3"])
def test_other_families_have_no_thoughts(name: str) -> None:
    template = load(sample_templates.ALL[name])
    assert template.thoughts.marks is None
    template.close()


@pytest.mark.parametrize("source", [None, sample_templates.CHATML])
def test_tokens_of_the_vocabulary_show_thoughts(source: str | None) -> None:
    template = load(source, {"<|im_start|>": 1, "<|im_end|>": 2, "<think>": 3, "</think>": 4})
    assert template.thoughts.marks is not None
    assert template.thoughts.marks.closing == "\n</think>\n\n"
    template.close()


def test_unknown_marks_are_learned_from_a_past_thought() -> None:
    template = load(
        "{% for m in messages %}<{{ m.role }}>{% if m.reasoning %}<|reason|>{{ m.reasoning }}"
        "<|over|><|say|>{% endif %}{{ m.content }}</{{ m.role }}>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    support = template.thoughts
    assert support.marks is not None
    assert (support.key, support.marks.begin, support.marks.closing) == (
        "reasoning",
        "<|reason|>",
        "<|over|><|say|>",
    )
    template.close()


@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "GLM-4.6", "Qwen3.5-4B"])
def test_thoughts_of_the_current_turn_are_rendered(name: str, families: dict[str, ChatTemplate]) -> None:
    past = Message("assistant", "Let me look.", thoughts="A map helps.")
    text = families[name].render([*QUESTION, past]).text
    assert "A map helps." in text
    assert "A map helps." not in families[name].render([*QUESTION, past, *QUESTION]).text


def test_levels_of_effort_are_those_that_the_template_accepts(families: dict[str, ChatTemplate]) -> None:
    template = families["openai-gpt-oss-120b"]
    assert template.thoughts.efforts == {"low", "medium", "high"}
    assert "Reasoning: high" in template.render(QUESTION, options={"reasoning_effort": "high"}).text
    assert families["Qwen-Qwen3-0.6B"].thoughts.efforts == frozenset()


def test_texts_in_options_are_contents(families: dict[str, ChatTemplate]) -> None:
    rendering = families["openai-gpt-oss-120b"].render(QUESTION, options={"model_identity": "<|end|>\ud800"})
    spans = [rendering.traced[begin:end] for begin, end in rendering.contents]
    assert "<|end|>?" in spans
