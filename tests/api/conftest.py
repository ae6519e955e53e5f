"""Servers with an embedding model, with and without documents."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, running_server


def wait_until_indexed(url: str) -> None:
    """Wait for the index. On a busy machine the server is ready before it is complete."""
    while httpx.get(f"{url}/v1/knowledge").json()["indexing"]:
        time.sleep(0.05)


@pytest.fixture(scope="session")
def embedding_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with an embedding model and without documents."""
    log = tmp_path_factory.mktemp("embedding") / "log"
    with running_server(log, EMBEDDING_MODEL="all-MiniLM-L6-v2") as server:
        yield server.url


@pytest.fixture(scope="session")
def narrow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with one sequence of 512 tokens and room for one waiting request."""
    log = tmp_path_factory.mktemp("narrow") / "log"
    sizes = {"N_CTX": "512", "MAX_SEQUENCES": "1", "MAX_CONCURRENT_REQUESTS": "2"}
    with running_server(log, **sizes, EMBEDDING_MODEL="all-MiniLM-L6-v2") as server:
        yield server.url


@pytest.fixture(scope="session")
def thinking_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the chat template of Qwen3.5, which begins each answer with a thought."""
    folder = tmp_path_factory.mktemp("thinking")
    template = ROOT / "tests" / "chat" / "templates" / "Qwen3.5-4B.jinja"
    (folder / "chat_template.jinja").write_text(template.read_text())
    with running_server(folder / "log", TOKENIZER_REPO=str(folder)) as server:
        yield server.url


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three documents. One of them is unreadable."""
    folder = tmp_path_factory.mktemp("documents")
    sample = next((ROOT / "data").glob("*.md"))
    (folder / "sample.md").write_bytes(sample.read_bytes())
    (folder / "notes").mkdir()
    (folder / "notes" / "ferry.txt").write_text(
        "The ferry Marigold leaves Pendrick Quay at 07:15 and at 18:30. It carries bicycles for two crowns."
    )
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing of a PDF")
    return folder


@pytest.fixture(scope="session")
def knowledge_url(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that answers from ``documents``."""
    folder = tmp_path_factory.mktemp("knowledge")
    paths = {"DATA_PATH": str(documents), "KNOWLEDGE_INDEX": str(folder / "index")}
    with running_server(folder / "log", KNOWLEDGE="on", RERANK_WITH_EMBEDDINGS="on", **paths) as server:
        wait_until_indexed(server.url)
        yield server.url
