"""/v1/rerank, /v2/rerank and /rerank rank documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cohere
import httpx
import numpy as np
import pytest

from tests.api.conftest import wait_until_indexed
from tests.conftest import running_server
from tests.reranker_model import write_reranker

pytestmark = pytest.mark.slow

QUERY = "When does the Wren Bridge open?"
TEXTS = ["The ferry is called the Patient Heron.", "The Wren Bridge opens at 06:25.", "Owls are paid half."]


@pytest.fixture(scope="module")
def reranker_url(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a reranker and documents."""
    folder = tmp_path_factory.mktemp("reranker")
    settings = {
        "KNOWLEDGE": "on",
        "DATA_PATH": str(documents),
        "KNOWLEDGE_INDEX": str(folder / "index"),
        "KNOWLEDGE_TOP_K": "2",
        "RERANK_MODEL": str(write_reranker(folder / "tiny.gguf")),
    }
    with running_server(folder / "log", **settings) as server:
        wait_until_indexed(server.url)
        yield server.url


def post(url: str, path: str = "/v1/rerank", **fields: Any) -> httpx.Response:
    return httpx.post(url + path, json={"query": QUERY} | fields, timeout=60)


def ranked(url: str, path: str = "/v1/rerank", **fields: Any) -> Any:
    response = post(url, path, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def scores(url: str, texts: list[str]) -> list[float]:
    """Relevance of the texts, in their order."""
    results = ranked(url, documents=texts)["results"]
    return [entry["relevance_score"] for entry in sorted(results, key=lambda entry: int(entry["index"]))]


def test_results_are_sorted_by_the_model(reranker_url: str) -> None:
    answer = ranked(reranker_url, documents=TEXTS)
    assert (answer["model"], answer["object"]) == ("tiny", "list")
    relevance = [entry["relevance_score"] for entry in answer["results"]]
    assert relevance == sorted(relevance, reverse=True)
    assert len(set(relevance)) == 3
    assert all(0 < score < 1 for score in relevance)
    assert answer["usage"]["total_tokens"] > 30
    second = ranked(reranker_url, "/v2/rerank", documents=TEXTS, top_n=2, return_documents=True)
    assert [entry["index"] for entry in second["results"]] == [entry["index"] for entry in answer["results"]][
        :2
    ]
    assert [entry["document"]["text"] for entry in second["results"]] == [
        TEXTS[entry["index"]] for entry in second["results"]
    ]
    as_objects = ranked(reranker_url, documents=[{"text": text} for text in TEXTS])
    assert as_objects["results"] == answer["results"]


def test_metrics_name_the_reranker(reranker_url: str) -> None:
    ranked(reranker_url, documents=TEXTS)
    [line] = [
        line
        for line in httpx.get(f"{reranker_url}/metrics").text.splitlines()
        if line.startswith("http_requests_total{") and 'route="/v1/rerank",status="200"' in line
    ]
    assert 'model="tiny"' in line


def test_a_score_does_not_depend_on_the_other_documents(reranker_url: str) -> None:
    together = scores(reranker_url, TEXTS)
    assert together == pytest.approx([scores(reranker_url, [text])[0] for text in TEXTS], abs=0.02)


def test_texts_are_ranked_as_in_text_embeddings_inference(reranker_url: str) -> None:
    ranks = ranked(reranker_url, "/rerank", texts=TEXTS, return_text=True)
    assert [entry["text"] for entry in ranks] == [TEXTS[entry["index"]] for entry in ranks]
    raw = ranked(reranker_url, "/rerank", texts=TEXTS, raw_scores=True)
    assert [entry["index"] for entry in raw] == [entry["index"] for entry in ranks]
    logits = np.array([entry["score"] for entry in raw])
    assert [entry["score"] for entry in ranks] == pytest.approx(1 / (1 + np.exp(-logits)), abs=0.02)
    too_long = post(reranker_url, "/rerank", texts=[TEXTS[0], "word " * 3000])
    assert too_long.status_code == 413
    assert too_long.json()["error"].startswith("texts.1: with the query exceeds the 512 tokens of tiny")
    assert len(ranked(reranker_url, "/rerank", texts=["word " * 3000], truncate=True)) == 1


def test_the_reranker_sorts_the_passages_of_an_answer(reranker_url: str) -> None:
    body = {"query": QUERY, "max_tokens": 1, "details": True}
    answer = httpx.post(f"{reranker_url}/token_stream", json=body, timeout=60)
    sources = json.loads(answer.text.partition("\x1e")[2])["sources"]
    found = httpx.post(f"{reranker_url}/v1/knowledge/search", json={"query": QUERY, "top_k": 8}, timeout=60)
    candidates = [f"{one['heading']}\n{one['text']}".strip() for one in found.json()["data"]]
    best = sorted(scores(reranker_url, candidates), reverse=True)
    assert [source["score"] for source in sources] == pytest.approx(best[:2], abs=0.02)


def test_without_a_reranker_cosines_rank_if_the_setting_allows(
    knowledge_url: str, embedding_url: str
) -> None:
    answer = ranked(knowledge_url, documents=TEXTS)
    assert answer["model"] == "all-MiniLM-L6-v2"
    assert answer["results"][0]["index"] == 1
    assert 0.5 < answer["results"][0]["relevance_score"] <= 1
    refused = post(embedding_url, documents=TEXTS)
    assert refused.status_code == 501
    assert "start the server with RERANK_MODEL" in refused.json()["message"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "documents: is required, or texts instead"),
        ({"documents": []}, "documents: "),
        ({"documents": ["a"], "texts": ["a"]}, "texts: cannot be combined with documents"),
        ({"documents": ["a"], "top_n": 0}, "top_n: should be greater than or equal to 1"),
        ({"documents": ["a"], "query": ""}, "query: string should have at least 1 character"),
    ],
)
def test_errors_name_the_field(knowledge_url: str, fields: dict[str, Any], message: str) -> None:
    response = post(knowledge_url, **fields)
    assert response.status_code == 422
    assert response.json()["message"].startswith(message)
    assert response.json()["error"] == response.json()["message"]


def test_coheres_client_gets_results_and_errors(reranker_url: str) -> None:
    with cohere.ClientV2("none", base_url=reranker_url) as client:
        answer = client.rerank(model="any", query=QUERY, documents=TEXTS, top_n=2)
        expected = ranked(reranker_url, documents=TEXTS)["results"][:2]
        assert [(one.index, one.relevance_score) for one in answer.results] == [
            (one["index"], one["relevance_score"]) for one in expected
        ]
        with pytest.raises(cohere.UnprocessableEntityError, match="documents: "):
            client.rerank(model="any", query=QUERY, documents=[])
