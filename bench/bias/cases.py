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
    """Cases of one half with the same options."""

    name: str
    options: tuple[Option, ...]
    is_yes_or_no: bool
    cases: tuple[Case, ...]


def half_of(items: Sequence[_T], half: Half) -> Sequence[_T]:
    """The first, third, … items are for development; the second, fourth, … are held out."""
    return items[half == "held-out" :: 2]


def read_task(name: str, half: Half) -> Task:
    """Read half of a task: of each label, or of the documents, so that no document is in both halves."""
    content = read_toml(FOLDER / f"{name}.toml")
    if content["type"] == "yes or no":
        return Task(name, (Option("Yes"), Option("No")), True, _statements(content, half))
    options = tuple(Option(option, described or None) for option, described in content["options"].items())
    labels = [option.name for option in options]
    cases = tuple(
        Case(text, content["instructions"], labels.index(label))
        for label, texts in content["cases"].items()
        for text in half_of(texts, half)
    )
    return Task(name, options, False, cases)


def _statements(content: dict[str, Any], half: Half) -> tuple[Case, ...]:
    return tuple(
        Case(document["text"], content["instructions"].format(statement=statement), right)
        for document in half_of(content["documents"], half)
        for right, truth in enumerate(("true", "false"))
        for statement in document[truth]
    )
