"""The labelled cases in ``cases/``, one file per task, and their fixed split into two halves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from app.config.toml_file import read_toml
from app.service import Option

FOLDER = Path(__file__).parent / "cases"
TASKS = ("routing", "sentiment", "facts", "urgency")

Half = Literal["development", "held-out"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Case:
    """A text, a question about it, and the index of the right option."""

    text: str
    instructions: str
    right: int


@dataclass(frozen=True, slots=True)
class Task:
    """Cases of one half with the same options.

    Attributes:
        instructions: The question of all cases; None if each has its own.
        examples: Cases of neither half. Options take turns.
    """

    name: str
    options: tuple[Option, ...]
    instructions: str | None
    examples: tuple[Case, ...]
    cases: tuple[Case, ...]

    @property
    def is_yes_or_no(self) -> bool:
        return self.instructions is None


def half_of(items: Sequence[_T], half: Half) -> Sequence[_T]:
    """The first, third, … items are for development; the second, fourth, … are held out."""
    return items[half == "held-out" :: 2]


def read_task(name: str, half: Half) -> Task:
    """Read half of a task: of each label, or of the documents, so that no document is in both halves."""
    content = read_toml(FOLDER / f"{name}.toml")
    if content["type"] == "yes or no":
        asked = content["instructions"]
        examples = _statements(asked, content["examples"])
        # True and false statements take turns.
        turns = (*examples[::2], *examples[1::2])
        return Task(
            name,
            (Option("Yes"), Option("No")),
            None,
            turns,
            _statements(asked, half_of(content["documents"], half)),
        )
    options = tuple(Option(option, described or None) for option, described in content["options"].items())
    asked, labels = content["instructions"], [option.name for option in options]
    examples = tuple(
        Case(text, asked, labels.index(label))
        for texts in zip(*content["examples"].values(), strict=True)
        for label, text in zip(content["examples"], texts, strict=True)
    )
    cases = tuple(
        Case(text, asked, labels.index(label))
        for label, texts in content["cases"].items()
        for text in half_of(texts, half)
    )
    return Task(name, options, asked, examples, cases)


def _statements(asked: str, documents: Sequence[Any]) -> tuple[Case, ...]:
    return tuple(
        Case(document["text"], asked.format(statement=statement), right)
        for document in documents
        for right, truth in enumerate(("true", "false"))
        for statement in document[truth]
    )
