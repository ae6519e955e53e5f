"""Questions of the retrieval benchmark: each answer occurs once in the documents."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "callowmere.md"
KNOWLEDGE = Path(__file__).resolve().parents[1] / "knowledge"
CORPUS = KNOWLEDGE / "corpus"
QUESTIONS: list[dict[str, str]] = json.loads((KNOWLEDGE / "questions.json").read_text())


def read_documents() -> dict[str, str]:
    """Text of the sample and of each document of the corpus, by path."""
    corpus = {path.relative_to(CORPUS).as_posix(): path for path in CORPUS.rglob("*") if path.is_file()}
    assert SAMPLE.name not in corpus
    return {name: path.read_text() for name, path in {SAMPLE.name: SAMPLE, **corpus}.items()}


DOCUMENTS = read_documents()


@pytest.mark.parametrize("entry", QUESTIONS, ids=[entry["question"] for entry in QUESTIONS])
def test_an_answer_occurs_once_in_one_document(entry: dict[str, str]) -> None:
    assert sorted(entry) == ["answer", "file", "kind", "question"]
    found = {name: text.count(entry["answer"]) for name, text in DOCUMENTS.items() if entry["answer"] in text}
    assert found == {entry["file"]: 1}
    assert "\n" not in entry["answer"], "readers join lines differently"


def test_a_third_of_sixty_questions_is_of_each_kind() -> None:
    kinds = Counter(entry["kind"] for entry in QUESTIONS)
    assert sum(kinds.values()) == len({entry["question"] for entry in QUESTIONS}) == 60
    assert kinds.keys() == {"plain", "paraphrase", "name"}
    assert min(kinds.values()) >= 19


def test_each_document_has_questions() -> None:
    n_questions = Counter(entry["file"] for entry in QUESTIONS)
    assert n_questions.keys() == DOCUMENTS.keys()
    assert min(n_questions.values()) >= 4
    assert {Path(name).suffix for name in DOCUMENTS} >= {".md", ".txt", ".html"}
