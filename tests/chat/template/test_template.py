"""Templates are rendered as by transformers. An unusable template is replaced with a warning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment

from app.chat.messages import Message
from app.chat.template.sandbox import TemplateRejection
from app.chat.template.template import ChatTemplate, choose_template
from app.engine.llama import Model
from tests.chat import sample_templates
from tests.conftest import MODEL

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML_VOCABULARY = {"<|im_start|>", "<|im_end|>"}
SYSTEM, USER = Message("system", "Be brief."), Message("user", "Why?")
ASSISTANT = Message("assistant", "Because.")
Choose = Callable[..., ChatTemplate]


@pytest.fixture(scope="module")
def choose() -> Iterator[Choose]:
    chosen: list[ChatTemplate] = []

    def choose(source: str | None, **options: object) -> ChatTemplate:
        arguments = {"special_tokens": SPECIAL, "vocabulary": CHATML_VOCABULARY} | options
        chosen.append(choose_template(source, **arguments))  # type: ignore[arg-type]
        return chosen[-1]

    yield choose
    for template in chosen:
        template.close()


def text(template: ChatTemplate, *messages: Message, prompt: bool = True) -> str:
    return template.render(messages, add_generation_prompt=prompt).text


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- templates of model families


def test_mistral_alternates_roles_and_folds_the_system_message(choose: Choose) -> None:
    template = choose(sample_templates.MISTRAL)
    assert template.folds_system
    assert text(template, USER, ASSISTANT, USER) == "<s>[INST] Why? [/INST]Because.</s>[INST] Why? [/INST]"
    assert text(template, SYSTEM, USER) == "<s>[INST] Be brief.\n\nWhy? [/INST]"
    with pytest.raises(TemplateRejection, match=r"^Conversation roles must alternate user/assistant"):
        template.render([USER, USER])


def test_llama_2_has_a_system_message(choose: Choose) -> None:
    template = choose(sample_templates.LLAMA_2)
    assert not template.folds_system
    assert text(template, SYSTEM, USER, ASSISTANT, USER) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhy? [/INST] Because. </s><s>[INST] Why? [/INST]"
    )


def test_gemma_has_the_system_message_in_the_first_user_turn(choose: Choose) -> None:
    template = choose(sample_templates.GEMMA)
    assert template.folds_system
    assert text(template, SYSTEM, USER, ASSISTANT, USER) == (
        "<s><start_of_turn>user\nBe brief.\n\nWhy?<end_of_turn>\n"
        "<start_of_turn>model\nBecause.<end_of_turn>\n"
        "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert text(template, SYSTEM, prompt=False) == "<s><start_of_turn>user\nBe brief.<end_of_turn>\n"


def test_qwen_3_removes_thoughts_of_earlier_answers(choose: Choose) -> None:
    template = choose(sample_templates.QWEN_3)
    thinking = Message("assistant", "<think>\nHm.\n</think>\n\nBecause.")
    assert text(template, SYSTEM, USER, thinking, USER) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\nBecause.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert text(template, USER, thinking, prompt=False).endswith(
        "<|im_start|>assistant\n<think>\nHm.\n</think>\n\nBecause.<|im_end|>\n"
    )


def test_llama_3_trims_contents_and_has_the_date(choose: Choose) -> None:
    template = choose(sample_templates.LLAMA_3)
    before = datetime.now()
    written = text(template, SYSTEM, Message("user", "  Why? \n"))
    assert written in [
        "<s><|start_header_id|>system<|end_header_id|>\n\n"
        f"Today Date: {day.strftime('%d %b %Y')}\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        for day in (before, datetime.now())
    ]


def test_phi_3_ends_with_eos_without_a_generation_prompt(choose: Choose) -> None:
    template = choose(sample_templates.PHI_3)
    assert text(template, SYSTEM, USER, ASSISTANT, prompt=False) == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nWhy?<|end|>\n<|assistant|>\nBecause.<|end|>\n</s>"
    )


def test_the_default_model_has_a_template_with_its_own_system_message(choose: Choose) -> None:
    model = Model(MODEL, vocab_only=True)
    source = model.chat_template
    model.close()
    template = choose(source)
    assert template.name == "the model's template"
    assert text(template, SYSTEM, USER) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "You are a helpful AI assistant named SmolLM" in text(template, USER)


@pytest.fixture(scope="module", params=sample_templates.ALL)
def family(request: pytest.FixtureRequest, choose: Choose) -> tuple[str, ChatTemplate]:
    source = sample_templates.ALL[request.param]
    return source, choose(source, time_limit=10)  # seconds: the machine can be busy


PIECES = st.sampled_from(
    ["<think>", "</think>", "<|im_end|>", "\n", "{{ bos_token }}", "\U000f0041", "\ud800"]
)
CONTENTS = st.lists(st.text(max_size=12) | PIECES, max_size=6).map("".join)


@settings(deadline=None, max_examples=60)
@given(contents=st.tuples(CONTENTS, CONTENTS, CONTENTS))
@pytest.mark.slow
def test_random_contents_are_rendered_and_traced(
    contents: tuple[str, str, str], family: tuple[str, ChatTemplate]
) -> None:
    source, template = family
    roles = ("user", "assistant", "user")
    rendering = template.render([Message(*turn) for turn in zip(roles, contents, strict=True)])
    as_unicode = [content.encode("utf-8", "replace").decode() for content in contents]
    assert rendering.text == rendering.traced == rendered_by_jinja(source, roles, as_unicode)
    crossed_out = rendering.text
    for begin, end in rendering.contents:
        crossed_out = crossed_out[:begin] + "x" * (end - begin) + crossed_out[end:]
    # The templates themselves are ASCII, so other characters are from contents.
    assert "".join(crossed_out.split()).isascii()


def rendered_by_jinja(source: str, roles: Sequence[str], contents: Sequence[str]) -> str:
    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    return environment.from_string(source).render(
        messages=messages,
        add_generation_prompt=True,
        tools=None,
        strftime_now=lambda form: datetime.now().strftime(form),
        **SPECIAL,
    )


# --- the environment


def test_filters_tags_and_variables_are_those_of_transformers(choose: Choose) -> None:
    template = choose(
        "{% for message in messages %}\n"
        "    {% if loop.index0 > 1 %}\n{% break %}\n    {% endif %}\n"
        "{{ message | tojson }}{{ [1, 'é<'] | tojson(indent=2) }}\n"
        "{% generation %}{{ message.content }}{% endgeneration %}\n"
        "{% endfor %}\n"
        "{{ tools is none }} {{ documents is none }} {{ eos_token }} {{ pad_token | default('no pad') }}"
    )
    assert text(template, Message("user", 'é "<&>"')) == (
        '{"role": "user", "content": "é \\"<&>\\""}[\n  1,\n  "é<"\n]\né "<&>"True True </s> no pad'
    )


# --- unusable templates


@pytest.mark.parametrize("source", [None, "", " \n"])
def test_chatml_is_the_default_for_vocabularies_with_its_tokens(
    source: str | None, choose: Choose, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        template = choose(source)
    assert [r.getMessage() for r in caplog.records] == ["the model has no chat template: using ChatML"]
    assert not warnings(caplog)
    assert (template.name, template.stop) == ("ChatML", ())
    assert text(template, SYSTEM, USER, ASSISTANT, USER) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\nBecause.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text(template, USER, prompt=False) == "<|im_start|>user\nWhy?<|im_end|>\n"


@pytest.mark.parametrize("vocabulary", [set(), {"<|im_start|>"}, {"<|im_end|>", "<s>"}])
def test_plain_text_is_the_default_for_other_vocabularies(vocabulary: set[str], choose: Choose) -> None:
    template = choose(None, vocabulary=vocabulary)
    assert (template.name, template.stop) == ("plain text", ("\nUser:",))
    assert text(template, SYSTEM, USER, ASSISTANT, USER) == (
        "Be brief.\n\nUser: Why?\nAssistant: Because.\nUser: Why?\nAssistant:"
    )


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for %}", "TemplateSyntaxError: Expected an expression, got 'end of statement block'"),
        ("{{ messages[0].content.nothing.more }}", "UndefinedError: 'str object' has no attribute 'nothing'"),
        ("{{ raise_exception('No.') }}", "No."),
        ("{{ messages[0]['content'][0]['text'] }}", "it omits the content of role 'user'"),
        (
            "{{ ''.__class__.__mro__ }}",
            "SecurityError: access to attribute '__class__' of 'str' object is unsafe.",
        ),
        ("{{ 'a' * 10 ** 10 }}{{ messages[0].content }}", "MemoryError"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "it takes longer than 1",
        ),
    ],
)
def test_an_unusable_template_is_replaced_with_one_warning(
    source: str, reason: str, choose: Choose, caplog: pytest.LogCaptureFixture
) -> None:
    template = choose(source)
    (warning,) = warnings(caplog)
    assert warning.startswith(f"the chat template failed ({reason}")
    assert warning.endswith("): using ChatML")
    assert text(template, USER) == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def test_system_messages_are_folded_for_a_template_that_omits_them(choose: Choose) -> None:
    template = choose("{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}")
    assert template.folds_system
    assert text(template, SYSTEM, Message("system", "Be kind."), USER, ASSISTANT, SYSTEM, USER, SYSTEM) == (
        "[Be brief.\n\nBe kind.\n\nWhy?][Because.][Be brief.\n\nWhy?][Be brief.]"
    )


def test_a_template_for_a_single_turn_is_used_with_a_warning(
    choose: Choose, caplog: pytest.LogCaptureFixture
) -> None:
    template = choose(
        "{{ messages[2].content.x.y if messages | length > 2 }}"
        "{{ messages | map(attribute='content') | join }}"
    )
    (warning,) = warnings(caplog)
    assert warning.startswith("the chat template cannot render conversations of several turns (Undefined")
    assert text(template, SYSTEM, USER) == "Be brief.Why?"


# --- failures of single requests


def test_a_failed_rendering_uses_chatml_for_that_request_only(
    choose: Choose, caplog: pytest.LogCaptureFixture
) -> None:
    template = choose(
        "{% for m in messages %}{{ m.content.x.y if m.content == 'fail' else m.content }}{% endfor %}"
        "{% if messages[0].content == 'hang' %}{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}"
    )
    assert not warnings(caplog)
    for content in ("fail", "hang"):
        assert text(template, Message("user", content)) == (
            f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
        )
        assert text(template, USER) == "Why?"
    failed, timed_out = warnings(caplog)
    assert failed == (
        "the chat template failed for this request (UndefinedError: 'str object' has no attribute 'x'): "
        "used ChatML instead"
    )
    assert timed_out.startswith("the chat template failed for this request (it takes longer than 1")


def test_raise_exception_is_an_error_of_the_request(choose: Choose, caplog: pytest.LogCaptureFixture) -> None:
    template = choose(sample_templates.GEMMA)
    with pytest.raises(TemplateRejection, match=r"^Conversation roles must alternate"):
        template.render([USER, USER])
    assert not warnings(caplog)


def test_chatml_is_used_if_the_process_cannot_start(
    choose: Choose, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert choose(sample_templates.CHATML).name == "ChatML"
    (warning,) = warnings(caplog)
    assert warning.startswith("the chat template failed (it cannot start its process ([Errno 2]")
