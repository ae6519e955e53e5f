"""A folder of documents, knowledge bases over it, and helpers of their tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.config.settings import load
from app.engine.embedder import Embedder
from app.knowledge import backlog
from app.knowledge.knowledge import Knowledge, KnowledgeOptions
from app.weights.embedding import resolve_embedding_model
from tests.polling import wait_for


class Recorder:
    """An observer that records its calls."""

    def __init__(self) -> None:
        self.indexed: list[tuple[int, str | None]] = []
        self.state = (0, 0, 0)
        self.lookups: list[float] = []

    def on_indexed(self, n_chunks: int, problem: str | None) -> None:
        self.indexed.append((n_chunks, problem))

    def on_index(self, n_documents: int, n_chunks: int, n_skipped: int) -> None:
        self.state = (n_documents, n_chunks, n_skipped)

    def on_lookup(self, seconds: float) -> None:
        self.lookups.append(seconds)


Open = Callable[..., tuple["Knowledge", Recorder]]


@pytest.fixture(scope="package")
def embedder() -> Iterator[Embedder]:
    embedder = Embedder(resolve_embedding_model(load(None)), n_threads=1)
    yield embedder
    embedder.close()


@pytest.fixture
def files_rest_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "_RESTS_AFTER", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    (folder / "sub" / "deeper").mkdir(parents=True)
    (folder / "bridge.md").write_text("# Bridges\n\nThe Wren Bridge opens at 06:25.")
    (folder / "sub" / "deeper" / "ferry.txt").write_text("The ferry is called the Patient Heron.")
    return folder


@pytest.fixture
def open_knowledge(
    folder: Path, tmp_path: Path, embedder: Embedder, files_rest_at_once: None
) -> Iterator[Open]:
    opened: list[Knowledge] = []

    def make(**changes: Any) -> tuple[Knowledge, Recorder]:
        fields: dict[str, Any] = {"top_k": 4, "threshold": 0.3, "chunk_tokens": 200, "chunk_overlap": 40}
        events = Recorder()
        options = KnowledgeOptions(folder=folder, index=tmp_path / "index", **fields | changes)
        opened.append(Knowledge(options, embedder, events))
        opened[-1].start()
        return opened[-1], events

    yield make
    for knowledge in opened:
        knowledge.close()


def until(condition: Callable[[], object]) -> None:
    wait_for(condition, interval=0.05)


def names(knowledge: Knowledge, state: str = "indexed") -> list[str]:
    return [document.name for document in knowledge.documents() if document.state == state]


def wait_for_the_watch() -> None:
    time.sleep(0.3)


def settled(knowledge: Knowledge) -> Knowledge:
    until(lambda: not knowledge.is_indexing)
    return knowledge
