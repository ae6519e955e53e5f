"""Thoughts of a real model: grammars and stop strings hold for the answer, the budget for the thought."""

from __future__ import annotations

import json

import pytest

from app.engine.async_engine import AsyncEngine
from app.engine.sampling.grammar import GrammarCompiler
from app.engine.sequence import FinishReason
from app.engine.thoughts import Thinking, ThoughtMarks
from tests.engine.engine_calls import submit

pytestmark = pytest.mark.anyio

MARKS = ThoughtMarks("<think>", "</think>")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def thinking(engine: AsyncEngine, *, is_open: bool, budget: int | None) -> Thinking:
    begin, closing, gap = (
        tuple(engine.vocab.tokenize(text, parse_special=True))
        for text in (MARKS.begin, MARKS.closing, MARKS.gap)
    )
    return Thinking(
        MARKS, is_open=is_open, budget=budget, begin_tokens=begin, closing_tokens=closing, gap_tokens=gap
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_grammar_and_stop_strings_hold_for_the_answer_only(
    temperature: float, engine: AsyncEngine
) -> None:
    answer = submit(
        engine,
        "Where is the Eiffel tower?",
        thinking=thinking(engine, is_open=True, budget=12),
        grammar=GrammarCompiler(engine.vocab).json_schema(SCHEMA),
        stop=(" ", "tower"),
        temperature=temperature,
        seed=3,
        max_tokens=60,
        logprobs=0,
    )
    outputs = [output async for output in answer]
    thought, text = "".join(o.thought for o in outputs), "".join(o.text for o in outputs)
    assert " " in thought
    assert text == '{"city":'  # the stop string applies here
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert answer.n_thought == sum(output.is_thought for output in outputs)
    assert 12 <= answer.n_thought <= 12 + len(engine.vocab.tokenize(MARKS.closing, parse_special=True))


async def test_the_model_may_begin_a_thought_before_a_constrained_answer(engine: AsyncEngine) -> None:
    """The bias selects the first token of the mark, which the grammar forbids."""
    begin = engine.vocab.tokenize(MARKS.begin, parse_special=True)
    grammar = GrammarCompiler(engine.vocab).json_schema(SCHEMA)
    texts = []
    for bias in ({begin[0]: 100.0}, {begin[0]: -100.0}):
        answer = submit(
            engine,
            "Where is the Eiffel tower?",
            thinking=thinking(engine, is_open=False, budget=6),
            grammar=grammar,
            logit_bias=bias,
            max_tokens=60,
        )
        outputs = [output async for output in answer]
        json.loads("".join(output.text for output in outputs))
        texts.append(("".join(output.thought for output in outputs), answer.n_thought))
    assert texts[0][1] > 6
    assert texts[1] == ("", 0)


async def test_an_end_within_a_thought_ends_the_thought_if_a_grammar_applies(engine: AsyncEngine) -> None:
    answer = submit(
        engine,
        "Where is the Eiffel tower?",
        thinking=thinking(engine, is_open=True, budget=None),
        grammar=GrammarCompiler(engine.vocab).json_schema(SCHEMA),
        logit_bias={engine.vocab.eos: 100.0},
        max_tokens=60,
    )
    outputs = [output async for output in answer]
    assert json.loads("".join(output.text for output in outputs))["city"] in ("Paris", "Rome")
    assert outputs[-1].finish_reason is FinishReason.EOS
    assert answer.n_thought == len(engine.vocab.tokenize(MARKS.closing, parse_special=True))


async def test_max_tokens_counts_thoughts(engine: AsyncEngine) -> None:
    answer = submit(
        engine, "Where?", thinking=thinking(engine, is_open=True, budget=None), max_tokens=8, ignore_eos=True
    )
    outputs = [output async for output in answer]
    assert len(outputs) == answer.n_thought == 8
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert "".join(output.text for output in outputs) == ""
