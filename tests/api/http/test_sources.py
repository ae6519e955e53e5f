"""Answers from documents in every dialect, and the sources that they name."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient

from tests.api.conftest import wait_until_indexed
from tests.conftest import Server

QUESTION = "What is the ferry to Gannet Island called?"
ANSWER = "Patient Heron"
GREEDY = {"temperature": 0, "max_tokens": 40}


def ask(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/token_stream", json={"query": QUESTION} | GREEDY | fields, timeout=60)


def sources_of(response: httpx.Response) -> list[dict[str, Any]]:
    return list(json.loads(response.headers.get("x-sources", "[]")))


def chat(url: str, *contents: str, **fields: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    response = httpx.post(
        f"{url}/v1/chat/completions", json={"messages": messages} | GREEDY | fields, timeout=60
    )
    assert response.status_code == 200, response.text
    return dict(response.json())


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_documents_change_the_answer(knowledge_url: str) -> None:
    with_documents = ask(knowledge_url)
    assert ANSWER in with_documents.text
    assert sources_of(with_documents)[0]["file"] == "sample.md"
    assert sources_of(with_documents)[0]["heading"].endswith("Ferries")
    without = ask(knowledge_url, knowledge=False)
    assert without.text
    assert ANSWER not in without.text
    assert "x-sources" not in without.headers


def test_details_contain_the_passages(knowledge_url: str) -> None:
    text, _, line = ask(knowledge_url, details=True).text.partition("\x1e")
    sources = json.loads(line)["sources"]
    assert ANSWER in text
    assert ANSWER in sources[0]["text"]
    assert [source["score"] for source in sources] == sorted((s["score"] for s in sources), reverse=True)
    assert sources_of(ask(knowledge_url)) == [
        {name: source[name] for name in ("file", "heading", "page", "cosine")} for source in sources
    ]


def test_a_question_without_matches_is_answered_without_passages(knowledge_url: str) -> None:
    response = ask(knowledge_url, query="What is the capital of France?", details=True)
    assert "Paris" in response.text
    assert "x-sources" not in response.headers
    assert "sources" not in json.loads(response.text.partition("\x1e")[2])


def test_a_request_can_select_files(knowledge_url: str) -> None:
    only = ask(knowledge_url, knowledge={"files": ["notes/ferry.txt"]})
    assert {source["file"] for source in sources_of(only)} == {"notes/ferry.txt"}
    assert ANSWER not in only.text


@pytest.mark.parametrize(
    ("knowledge", "field"),
    [
        ({"files": ["none.md"]}, "knowledge.files"),
        ({"files": []}, "knowledge.files"),
        ({"file": ["sample.md"]}, "knowledge"),
        ("yes", "knowledge"),
    ],
)
def test_an_invalid_selection_is_rejected_by_field(knowledge_url: str, knowledge: Any, field: str) -> None:
    own = ask(knowledge_url, knowledge=knowledge)
    assert own.status_code == 422
    assert field in own.json()["error"]
    with pytest.raises(openai.BadRequestError, match=field) as error:
        client(knowledge_url).chat.completions.create(
            model="any",
            messages=[{"role": "user", "content": QUESTION}],
            extra_body={"knowledge": knowledge},
        )
    assert str(error.value.param).startswith("knowledge")


def test_only_the_general_context_uses_documents_by_default(knowledge_url: str) -> None:
    assert httpx.get(f"{knowledge_url}/contexts").json()["with_documents"] == ["general"]
    assert sources_of(ask(knowledge_url, context="math")) == []
    assert sources_of(ask(knowledge_url, context="math", knowledge=True))


def test_the_openai_client_gets_passages_in_the_body_or_the_first_chunk(knowledge_url: str) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    whole = client(knowledge_url).chat.completions.create(model="any", messages=messages, temperature=0)
    assert ANSWER in str(whole.choices[0].message.content)
    assert whole.model_extra is not None
    assert ANSWER in whole.model_extra["sources"][0]["text"]
    chunks = [
        *client(knowledge_url).chat.completions.create(
            model="any", messages=messages, temperature=0, stream=True
        )
    ]
    assert ANSWER in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    with_sources = [i for i, chunk in enumerate(chunks) if "sources" in (chunk.model_extra or {})]
    assert with_sources == [0]


def test_the_hugging_face_client_gets_passages(knowledge_url: str) -> None:
    answer = InferenceClient(knowledge_url).chat_completion(
        [{"role": "user", "content": QUESTION}], temperature=0, max_tokens=40
    )
    assert ANSWER in str(answer.choices[0].message.content)
    assert ANSWER in answer["sources"][0]["text"]


def test_documents_are_used_beside_a_system_message(knowledge_url: str) -> None:
    messages = [{"role": "system", "content": "Answer in one line."}, {"role": "user", "content": QUESTION}]
    answer = chat(knowledge_url, messages=messages)
    assert ANSWER in answer["choices"][0]["message"]["content"]


def test_a_follow_up_question_is_searched_with_the_question_before_it(knowledge_url: str) -> None:
    alone = chat(knowledge_url, "And since when?")
    assert "Ilse Varrow" not in json.dumps(alone.get("sources", []))
    follow_up = chat(
        knowledge_url, "Who is the skipper of the Patient Heron?", "It is Ilse Varrow.", "And since when?"
    )
    assert "Ilse Varrow" in json.dumps(follow_up["sources"])


def test_equal_passages_are_prefilled_once(knowledge_url: str) -> None:
    first = chat(knowledge_url, QUESTION, knowledge={"files": ["notes/ferry.txt"]})
    other = chat(knowledge_url, "Does it carry bicycles?", knowledge={"files": ["notes/ferry.txt"]})
    assert [s["position"] for s in first["sources"]] == [s["position"] for s in other["sources"]]
    usage = other["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0.8 * usage["prompt_tokens"]


def test_without_a_knowledge_base_a_request_for_it_is_rejected(server_url: str) -> None:
    assert ask(server_url, knowledge=False).status_code == 200
    rejected = ask(server_url, knowledge=True)
    assert rejected.status_code == 501
    assert "KNOWLEDGE=on" in rejected.json()["error"]
    assert httpx.get(f"{server_url}/contexts").json()["knowledge"] is False


def test_chat_tokenize_includes_the_passages(knowledge_url: str) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}]}
    response = httpx.post(f"{knowledge_url}/chat_tokenize", json=body, timeout=60)
    assert (
        len(response.json()["tokenize_response"]) == chat(knowledge_url, QUESTION)["usage"]["prompt_tokens"]
    )


def test_metrics_count_searches_documents_chunks_and_skipped_files(knowledge_url: str) -> None:
    ask(knowledge_url)
    lines = httpx.get(f"{knowledge_url}/metrics").text.splitlines()
    values = {line.split("{")[0]: float(line.split()[-1]) for line in lines if line[0] != "#"}
    assert values["embedding_duration_count"] > 0
    assert values["knowledge_documents"] == values["indexed_documents_total"] == 2
    assert values["knowledge_chunks"] == values["indexed_chunks_total"] > 3
    assert values["knowledge_skipped_files"] == values["skipped_files_total"] == 1


def test_a_prompt_template_can_place_the_passages_and_answers_tell_that_documents_wait(
    start_server: Callable[..., Server], documents: Path, tmp_path: Path
) -> None:
    shutil.copytree(documents, tmp_path / "documents")
    server = start_server(
        KNOWLEDGE="on",
        DATA_PATH=str(tmp_path / "documents"),
        KNOWLEDGE_INDEX=str(tmp_path / "index"),
        KNOWLEDGE_FILE_SECONDS="3600",
        MODEL_PROMPT_TEMPLATE="Facts:\\n{context}\\n\\nAnswer with these facts: {query}",
    ).wait_until()
    wait_until_indexed(server.url)
    answer = chat(server.url, QUESTION)
    assert ANSWER in answer["choices"][0]["message"]["content"]
    assert "sources_waiting" not in answer
    began = time.time()
    # The time of the parser is quadratic in the depth, so this document waits until the server ends.
    (tmp_path / "documents" / "deep.html").write_text("<div>" * 1_000_000)
    while not (state := httpx.get(f"{server.url}/v1/knowledge").json())["indexing"]:
        time.sleep(0.05)
    assert (state["counts"]["indexed"], state["counts"]["waiting"]) == (2, 1)
    assert began - 1 <= state["waiting_since"] <= time.time()
    told = ask(server.url, details=True)
    assert told.headers["x-sources-waiting"] == "1"
    assert json.loads(told.text.partition("\x1e")[2])["sources_waiting"] == 1
    assert chat(server.url, QUESTION)["sources_waiting"] == 1
    assert "sources_waiting" not in chat(server.url, QUESTION, knowledge={"files": ["sample.md"]})
    stream = client(server.url).chat.completions.create(
        model="any", messages=[{"role": "user", "content": QUESTION}], max_tokens=3, stream=True
    )
    assert [
        index for index, chunk in enumerate(stream) if "sources_waiting" in (chunk.model_extra or {})
    ] == [0]
