"""Thoughts are separated from answers, however the output is cut into tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

import pytest

from app.engine.llama import Vocab
from app.engine.thoughts import Thinking, ThoughtMarks, ThoughtReader

THINK = ThoughtMarks("<think>", "</think>")
CHANNELS = ThoughtMarks(
    "<|channel|>analysis<|message|>",
    "<|end|>",
    lead="",
    gap="<|start|>assistant<|channel|>final<|message|>",
    header_end="<|message|>",
)
GRANITE = ThoughtMarks("<think>", "</think>", gap="\n<response>")
MISTRAL = ThoughtMarks("[THINK]", "[/THINK]", lead="", gap="")
GEMMA = ThoughtMarks("<|channel>thought", "<channel|>", gap="")

# Marks, whether the prompt opens the thought, output, thought, answer.
OUTPUTS: dict[str, tuple[ThoughtMarks, bool, str, str, str]] = {
    "Qwen3": (THINK, False, "<think>\nHm, < 5?\n</think>\n\nParis. </b>", "Hm, < 5?", "Paris. </b>"),
    "Qwen3 off": (THINK, False, "<think>\n\n</think>\n\nParis.", "", "Paris."),
    "R1": (THINK, True, "Hm.\n\nYes </thin \n</think>\n\nParis.\n", "Hm.\n\nYes </thin", "Paris.\n"),
    "no thought": (THINK, False, " \n Paris <think>x</think>", "", " \n Paris <think>x</think>"),
    "begin of a mark": (THINK, False, "<thin air>", "", "<thin air>"),
    "GLM": (THINK, False, "\n<think>Hm.</think>\nParis.", "Hm.", "Paris."),
    "two thoughts": (THINK, False, "<think>a</think>\n<think>b</think>c", "a\n\nb", "c"),
    "cut in a thought": (THINK, True, "Hm. </thi", "Hm. </thi", ""),
    "cut before the answer": (THINK, False, "<think>Hm.</think>\n", "Hm.", ""),
    "Mistral": (MISTRAL, False, "[THINK]Né [1]?[/THINK]Paris.", "Né [1]?", "Paris."),
    "Granite": (GRANITE, False, "<think>Hm.</think>\n\n<response>Paris.", "Hm.", "Paris."),
    "Gemma": (GEMMA, False, "<|channel>thought\nHm.\n<channel|>Paris.", "Hm.", "Paris."),
    "gpt-oss": (
        CHANNELS,
        False,
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>analysis<|message|>Yes."
        "<|end|><|start|>assistant<|channel|>final<|message|>Paris.",
        "Hm.\n\nYes.",
        "Paris.",
    ),
    "gpt-oss, commentary": (
        CHANNELS,
        False,
        "<|channel|>commentary<|message|>Wait. <|end|><|start|>assistant<|channel|>analysis<|message|>Hm."
        "<|end|><|start|>assistant<|channel|>final<|message|>Paris.",
        "Hm.",
        "Wait. Paris.",
    ),
    "gpt-oss, no thought": (CHANNELS, False, "<|channel|>final<|message|>Paris.", "", "Paris."),
    "gpt-oss, no header": (CHANNELS, False, "Paris.", "", "Paris."),
    "gpt-oss, cut": (CHANNELS, False, "<|channel|>analysis<|message|>Hm", "Hm", ""),
}


class ScriptedVocab:
    """Each distinct text is a token. Those in ``<|…|>`` are control tokens without a piece."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def token(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text)

    def tokenize(self, text: str, **_: Any) -> list[int]:
        return [self.token(part) for part in re.findall(r"<\|\w+\|>|.", text, re.DOTALL)]

    def text(self, token: int) -> str:
        return self.texts[token]

    def piece(self, token: int) -> bytes:
        text = self.texts[token]
        return b"" if is_control(text) else text.encode()


def is_control(text: str) -> bool:
    return re.fullmatch(r"<\|\w+\|>", text) is not None


def cuts(text: str) -> Iterator[list[str]]:
    """The text in pieces of equal size, at each offset. Control tokens are pieces."""
    parts = [part for part in re.split(r"(<\|\w+\|>)", text) if part]
    for size in (1, 2, 5, 9, 10_000):
        for offset in range(min(size, len(text))):
            yield [
                piece for part in parts for piece in ([part] if is_control(part) else cut(part, size, offset))
            ]


def cut(text: str, size: int, offset: int) -> list[str]:
    rest = (text[i : i + size] for i in range(offset, len(text), size))
    return [piece for piece in (text[:offset], *rest) if piece]


def read(reader: ThoughtReader, vocab: ScriptedVocab, pieces: list[str]) -> tuple[str, str]:
    thought, answer = "", ""
    for piece in pieces:
        token = vocab.token(piece)
        if reader.takes(token):
            new = reader.push(token)
            thought, answer = thought + new.thought, answer + new.answer
        else:
            answer += vocab.piece(token).decode()
    held = reader.finish()
    return thought + held.thought, answer + held.answer


def make(marks: ThoughtMarks, vocab: ScriptedVocab, **options: Any) -> ThoughtReader:
    markup = marks.begin + marks.closing + ("<|start|><|channel|><|message|>" if marks.header_end else "")
    visible = frozenset(t for t in vocab.tokenize(markup) if is_control(vocab.text(t)))
    constrained = options.pop("is_constrained", False)
    thinking = Thinking(marks, visible, **options)
    return ThoughtReader(thinking, cast(Vocab, vocab), is_constrained=constrained)


@pytest.mark.parametrize("name", OUTPUTS)
def test_thoughts_are_separated_however_the_output_is_cut(name: str) -> None:
    marks, is_open, output, thought, answer = OUTPUTS[name]
    for pieces in cuts(output):
        vocab = ScriptedVocab()
        reader = make(marks, vocab, is_open=is_open)
        assert read(reader, vocab, pieces) == (thought, answer), pieces
        if not thought and "off" not in name:
            assert reader.n_tokens == 0


def test_text_of_a_thought_streams() -> None:
    vocab = ScriptedVocab()
    reader = make(THINK, vocab, is_open=True)
    texts = [reader.push(vocab.token(piece)).thought for piece in ("One", " two", " ", "three <", "b>")]
    assert texts == ["One", " two", "", " three", " <b>"]


def test_tokens_of_thoughts_are_counted() -> None:
    vocab = ScriptedVocab()
    reader = make(THINK, vocab)
    pieces = ["<think>", "Hm", ".", "</think>", "\n\n", "Paris", "."]
    flags = []
    for piece in pieces:
        token = vocab.token(piece)
        flags.append(reader.takes(token) and reader.push(token).is_thought)
    assert flags == [True] * 5 + [False] * 2
    assert reader.n_tokens == 5


def test_a_thought_is_ended_at_its_budget() -> None:
    vocab = ScriptedVocab()
    closing = tuple(vocab.token(piece) for piece in ("\n</think>", "\n\n"))
    reader = make(THINK, vocab, is_open=True, budget=2, closing_tokens=closing)
    assert not reader.forced
    reader.push(vocab.token("Hm"))
    reader.push(vocab.token("."))
    assert reader.forced == closing
    for token in closing:
        reader.push(token)
    assert not reader.forced
    assert not reader.is_thinking
    assert make(THINK, vocab, is_open=True, budget=0, closing_tokens=closing).forced == closing


def test_the_gap_before_a_constrained_answer_is_forced() -> None:
    vocab = ScriptedVocab()
    gap = (vocab.token("\n\n"),)
    reader = make(THINK, vocab, is_open=True, gap_tokens=gap, is_constrained=True)
    reader.push(vocab.token("Hm</think> {"))  # the brace is no part of the grammar's text
    assert reader.forced == gap
    assert not reader.is_over
    assert reader.push(gap[0]).answer == ""
    assert reader.is_over
