"""/v1/knowledge lists documents, and /v1/knowledge/search searches them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Server

FERRY = "When does the Marigold leave Pendrick Quay?"


def search(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/knowledge/search", json={"query": FERRY} | fields, timeout=60)


def found(url: str, **fields: Any) -> list[dict[str, Any]]:
    response = search(url, **fields)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["object"] == "list"
    return list(body["data"])


def test_documents_are_listed_with_their_state(knowledge_url: str, documents: Path) -> None:
    state = httpx.get(f"{knowledge_url}/v1/knowledge").json()
    assert state["embedding_model"] == "all-MiniLM-L6-v2"
    assert (state["indexing"], state["waiting_since"]) == (False, None)
    by_name = {document["name"]: document for document in state["documents"]}
    assert [*by_name] == ["broken.pdf", "notes/ferry.txt", "sample.md"]
    broken, ferry, sample = by_name.values()
    assert (broken["state"], broken["chunks"]) == ("skipped", 0)
    assert broken["problem"]
    assert ferry == {
        "name": "notes/ferry.txt",
        "state": "indexed",
        "chunks": 1,
        "bytes": (documents / "notes" / "ferry.txt").stat().st_size,
        "problem": None,
        "waiting_since": None,
    }
    assert sample["chunks"] > 3
    n_chunks = ferry["chunks"] + sample["chunks"]
    assert state["counts"] == {"indexed": 2, "waiting": 0, "skipped": 1, "chunks": n_chunks}


def test_the_best_passage_is_first(knowledge_url: str) -> None:
    first, *others = found(knowledge_url)
    assert (first["file"], first["position"], first["page"]) == ("notes/ferry.txt", 0, None)
    assert "07:15" in first["text"]
    assert 0.5 < first["cosine"] <= 1
    assert all(first["score"] >= other["score"] > 0 for other in others)


def test_top_k_threshold_and_files_limit_the_results(knowledge_url: str) -> None:
    everything = found(knowledge_url, top_k=100, threshold=-1)
    assert len(everything) > 4
    assert found(knowledge_url, top_k=2, threshold=-1) == everything[:2]
    near = found(knowledge_url, top_k=100, threshold=0.5)
    assert near
    assert all(passage["cosine"] >= 0.5 for passage in near)
    assert found(knowledge_url, query="quantum chromodynamics", threshold=0.9) == []
    of_sample = found(knowledge_url, files=["sample.md"], threshold=-1)
    assert {passage["file"] for passage in of_sample} == {"sample.md"}


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"query": ""}, "query", "should have at least 1 character"),
        ({"files": []}, "files", "should have at least 1 item"),
        (
            {"files": ["sample.md", "none.md"]},
            "files",
            "document 'none.md' does not exist; GET /v1/knowledge lists all documents",
        ),
        ({"top_k": 0}, "top_k", "should be greater than or equal to 1"),
        ({"top_k": 101}, "top_k", "should be less than or equal to 100"),
        ({"threshold": 1.1}, "threshold", "should be less than or equal to 1"),
        ({"text": "a"}, "text", "unknown field"),
    ],
)
def test_error_messages_name_the_field(
    knowledge_url: str, fields: dict[str, Any], field: str, message: str
) -> None:
    response = search(knowledge_url, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == field
    assert error["message"].startswith(f"{field}: ")
    assert message in error["message"]


def test_any_text_is_a_valid_query(knowledge_url: str) -> None:
    for query in (
        '"',
        "NEAR(a, b)",
        "a OR NOT (",
        "the of and",
        "\x00",
        "*",
        "👩‍👩‍👧‍👦",
        "-",
        "file:x",
        "x" * 100_000,
    ):
        assert search(knowledge_url, query=query).status_code == 200, query


def test_without_a_knowledge_base_requests_are_answered_501(embedding_url: str) -> None:
    for response in (search(embedding_url), httpx.get(f"{embedding_url}/v1/knowledge")):
        assert response.status_code == 501
        error = response.json()["error"]
        assert error["message"] == "the knowledge base is off; start the server with KNOWLEDGE=on"


def test_requests_without_the_key_are_rejected(locked_server: Server) -> None:
    url = locked_server.url
    for response in (search(url), httpx.get(f"{url}/v1/knowledge")):
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
