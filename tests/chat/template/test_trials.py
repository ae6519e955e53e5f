"""Trial renderings find the tool support of a template. Conversations are rendered accordingly."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from app.chat.messages import Message, Tool, ToolCall
from app.chat.template.template import ChatTemplate, choose_template
from app.chat.tools.format import HERMES
from app.engine.llama import Model
from tests.chat import sample_templates
from tests.conftest import MODEL

ADD = Tool("add", "Adds numbers", {"properties": {"a": {"type": "number", "description": "One"}}})
SCHEMA = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds numbers",
        "parameters": {"type": "object", "properties": {"a": {"type": "number", "description": "One"}}},
    },
}
CALLS = (ToolCall("call_1", "add", '{"a": 1}'), ToolCall("call_2", "add", '{"a": 2}'))
SYSTEM, USER = Message("system", "Be brief."), Message("user", "How much?")
RESULT = Message("tool", "42", tool_call_id="call_1")
CONVERSATION = [SYSTEM, USER, Message("assistant", "", CALLS[:1]), RESULT]
Choose = Callable[[str | None], ChatTemplate]


@pytest.fixture(scope="module")
def choose() -> Iterator[Choose]:
    chosen: list[ChatTemplate] = []

    def choose(source: str | None) -> ChatTemplate:
        special = {"bos_token": "<s>", "eos_token": "</s>"}
        vocabulary = {"<|im_start|>", "<|im_end|>"}
        chosen.append(choose_template(source, special_tokens=special, vocabulary=vocabulary, time_limit=10))
        return chosen[-1]

    yield choose
    for template in chosen:
        template.close()


def text(template: ChatTemplate, *messages: Message, tools: tuple[Tool, ...] = (ADD,)) -> str:
    return template.render(messages, tools=tools).text


def test_hermes_has_lists_calls_and_results(choose: Choose) -> None:
    template = choose(sample_templates.HERMES_TOOLS)
    assert template.tool_format == HERMES
    two = Message("assistant", "Let me add.", CALLS)
    assert text(template, SYSTEM, USER, two, RESULT, replace(RESULT, tool_call_id="call_2")) == (
        f"<|im_start|>system\nBe brief.\n\nFunctions:\n<tools>\n{json.dumps(SCHEMA)}\n</tools>\n"
        'Answer with <tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nHow much?<|im_end|>\n<|im_start|>assistant\nLet me add.\n"
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n42\n</tool_response>\n<tool_response>\n42\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert "Functions" not in text(template, SYSTEM, USER, tools=())


def test_llama_3_has_single_calls_with_parameters(choose: Choose) -> None:
    template = choose(sample_templates.LLAMA_3_TOOLS)
    assert template.tool_format == replace(
        HERMES, begin="", end="", separator=None, middle='", "parameters": ', arguments_key="parameters"
    )
    assert text(template, *CONVERSATION) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{json.dumps(SCHEMA, indent=4)}\n\nHow much?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "add", "parameters": {"a": 1}}<|eot_id|>'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"42"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_mistral_has_call_ids_of_nine_characters(choose: Choose) -> None:
    template = choose(sample_templates.MISTRAL_TOOLS)
    assert template.tool_format == replace(
        HERMES, begin="[TOOL_CALLS][", end="]", separator=", ", id_text=(', "id": "', '"')
    )
    written = text(template, *CONVERSATION)
    *_, id_ = written.removesuffix('"}[/TOOL_RESULTS]').rpartition('"')
    assert (len(id_), id_.isalnum()) == (9, True)
    assert written == (
        f"<s>[AVAILABLE_TOOLS][{json.dumps(SCHEMA)}][/AVAILABLE_TOOLS][INST]Be brief.\n\nHow much?[/INST]"
        f'[TOOL_CALLS][{{"name": "add", "arguments": {{"a": 1}}, "id": "{id_}"}}]</s>'
        f'[TOOL_RESULTS]{{"content": 42, "call_id": "{id_}"}}[/TOOL_RESULTS]'
    )


def test_a_template_can_have_arguments_as_text(choose: Choose) -> None:
    template = choose(sample_templates.TOOL_CALL_LIST)
    assert template.tool_format == replace(HERMES, begin="<TOOLCALL>[", end="]</TOOLCALL>", separator=", ")
    spaced = ToolCall("1", "add", '{"a":1 }')
    assert text(template, USER, Message("assistant", "", (spaced, CALLS[1])), RESULT) == (
        f"<AVAILABLE>{json.dumps(SCHEMA)}</AVAILABLE>\n<|im_start|>user\nHow much?<|im_end|>\n"
        '<|im_start|>assistant\n<TOOLCALL>[{"name": "add", "arguments": {"a":1 }}, '
        '{"name": "add", "arguments": {"a": 2}}]</TOOLCALL><|im_end|>\n'
        "<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n"
    )


HERMES_TURNS = (
    '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
)


@pytest.mark.parametrize("source", [sample_templates.XML_TOOLS, sample_templates.CHATML, None, "bundled"])
def test_hermes_is_the_default_for_templates_without_calls_in_json(
    source: str | None, choose: Choose
) -> None:
    if source == "bundled":
        model = Model(MODEL, vocab_only=True)
        source = model.chat_template
        model.close()
    template = choose(source)
    assert template.tool_format == HERMES
    written = text(template, *CONVERSATION)
    begin = "<|im_start|>system\nBe brief.\n\nYou can call these functions, of which each line describes one"
    assert written.startswith(f"{begin} as JSON:\n<tools>\n{json.dumps(SCHEMA)}\n</tools>\n")
    assert written.endswith("<|im_start|>user\nHow much?<|im_end|>\n" + HERMES_TURNS)


def test_the_list_of_tools_is_folded_for_a_template_without_system_messages(choose: Choose) -> None:
    template = choose(sample_templates.GEMMA)
    written = text(template, *CONVERSATION)
    assert written.startswith("<s><start_of_turn>user\nBe brief.\n\nYou can call these functions")
    assert "How much?<end_of_turn>\n<start_of_turn>model\n<tool_call>" in written


LIST = "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"


def test_a_list_of_a_template_is_used_only_with_instructions_for_the_default_format(choose: Choose) -> None:
    template = choose(LIST + sample_templates.CHATML)
    assert "<tools>" in text(template, *CONVERSATION)
    instructions = '{% if tools %}Like <tool_call>\n{"name": n, "arguments": a}\n</tool_call>\n{% endif %}'
    template = choose(LIST + instructions + sample_templates.CHATML)
    written = text(template, *CONVERSATION)
    assert "<tools>" not in written
    assert written.startswith(json.dumps(SCHEMA) + "\nLike <tool_call>")
    # The template supports tools, so its own turn for results is used.
    assert HERMES_TURNS.replace("user\n<tool_response>\n42\n</tool_response>", "tool\n42") in written


def test_a_template_without_a_list_of_tools_gets_one_in_its_format(choose: Choose) -> None:
    template = choose(sample_templates.TOOL_CALL_LIST.replace("in tools or []", "in []"))
    written = text(template, *CONVERSATION)
    assert f"<tools>\n{json.dumps(SCHEMA)}\n</tools>" in written
    assert 'in this form:\n<TOOLCALL>[{"name": "<name>", "arguments": <arguments>}]</TOOLCALL>' in written
    assert '<|im_start|>assistant\n<TOOLCALL>[{"name": "add", "arguments": {"a": 1}}]</TOOLCALL>' in written


def test_results_are_user_messages_for_a_template_without_results(choose: Choose) -> None:
    template = choose(sample_templates.HERMES_TOOLS.replace("message.role == 'tool'", "false"))
    written = text(template, *CONVERSATION)
    assert "Functions:" in written
    assert written.endswith(HERMES_TURNS)


def test_a_failed_rendering_keeps_the_format_of_calls(
    choose: Choose, caplog: pytest.LogCaptureFixture
) -> None:
    fails = "{{ messages.x.y if messages[-1].content == 'fail' }}"
    template = choose(sample_templates.TOOL_CALL_LIST + fails)
    assert template.tool_format.marker == "<TOOLCALL>"
    written = text(template, SYSTEM, Message("assistant", "", CALLS[:1]), Message("user", "fail"))
    assert "used ChatML instead" in caplog.text
    assert "<tools>" in written
    assert '<|im_start|>assistant\n<TOOLCALL>[{"name": "add", "arguments": {"a": 1}}]</TOOLCALL>' in written


def test_the_tool_support_is_logged(choose: Choose, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        choose(sample_templates.LLAMA_3_TOOLS)
        choose(sample_templates.XML_TOOLS)
    assert [record.getMessage() for record in caplog.records] == [
        "the chat template supports these tool features: lists, calls, results; "
        """format of calls: '{"name": "name", "parameters": {…}}'""",
        "the chat template supports these tool features: none; "
        r"""format of calls: '<tool_call>\n{"name": "name", "arguments": {…}}\n</tool_call>'""",
    ]
