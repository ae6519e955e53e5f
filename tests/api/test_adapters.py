"""LoRA adapters of a server, chosen by requests of several dialects and by a context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from app.config.contexts import ContextsError
from app.config.settings import Settings
from app.service.start import Start
from tests.conftest import Server
from tests.lora_adapters import write_adapter

CONTEXTS = """
[contexts.general]
prompt = "You answer questions."
[contexts.adapted]
prompt = "You answer questions."
adapter = "strong"
"""
QUESTION = [{"role": "user", "content": "Tell me about the sea."}]


@pytest.fixture
def adapted(start_server: Callable[..., Server], tmp_path: Path) -> Iterator[httpx.Client]:
    strong, none = write_adapter(tmp_path / "s.gguf"), write_adapter(tmp_path / "n.gguf", strength=0)
    (tmp_path / "contexts.toml").write_text(CONTEXTS)
    server = start_server(
        LORA=f"strong={strong}:0.9,none={none}",
        CONTEXTS_FILE=str(tmp_path / "contexts.toml"),
        CONTEXT_TYPE="general",
    )
    with httpx.Client(base_url=server.wait_until().url, timeout=120) as client:
        yield client


def posted(client: httpx.Client, path: str, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_requests_and_contexts_choose_adapters(adapted: httpx.Client) -> None:
    base, strong, none = listed = adapted.get("/v1/models").json()["data"]
    name = base["id"]
    assert [one["id"] for one in listed] == [name, f"{name}:strong", f"{name}:none"]
    assert [(one["root"], one["parent"]) for one in listed] == [
        (name, None), ("s.gguf", name), ("n.gguf", name)
    ]  # fmt: skip
    assert adapted.get("/info").json()["adapters"] == ["strong", "none"]

    def chat(model: str, context: str = "general") -> str:
        body = {"messages": QUESTION, "max_tokens": 10, "temperature": 0, "context": context}
        reply = posted(adapted, "/v1/chat/completions", model=model, **body)
        return str(reply["choices"][0]["message"]["content"])

    # The prompts are equal: their prefixes must not mix.
    answers = [chat(one) for one in (name, strong["id"], none["id"], name, "any")]
    assert answers[0] == answers[2] == answers[3] == answers[4] != answers[1]
    assert chat(name, "adapted") == chat("any", "adapted") == answers[1], "the adapter of the context"
    assert chat(none["id"], "adapted") == answers[0], "the request takes precedence"

    def continued(adapter: str | None) -> str:
        text = posted(
            adapted,
            "/generate",
            inputs="The sea is",
            parameters={"max_new_tokens": 10, "adapter_id": adapter},
        )
        return str(text["generated_text"])

    body = {"raw": True, "stream": False, "prompt": "The sea is"}
    options = {"temperature": 0, "repeat_penalty": 1.0, "num_predict": 10}
    ollama = posted(adapted, "/api/generate", model=strong["id"], options=options, **body)
    assert ollama["response"] == continued("strong") != continued(None)
    assert continued("none") == continued(None)

    def probabilities(model: str) -> Any:
        reply = posted(adapted, "/classify", query="The sea is calm.", choices=["good", "bad"], model=model)
        return reply["probabilities"]

    assert probabilities(none["id"]) == probabilities(name) != probabilities(strong["id"])

    client = openai.OpenAI(base_url=f"{adapted.base_url}/v1", api_key="none", max_retries=0)
    served = f"served are: {name}, {name}:strong, {name}:none"
    with client, pytest.raises(openai.NotFoundError, match=served):
        client.chat.completions.create(model=f"{name}:absent", messages=QUESTION)  # type: ignore[arg-type]
    refused = adapted.post("/generate", json={"inputs": "x", "parameters": {"adapter_id": "absent"}})
    assert refused.status_code == 422
    assert "adapter_id: 'absent' should be one of strong, none" in refused.json()["error"]


def test_a_context_with_an_unknown_adapter_is_rejected_at_start(tmp_path: Path) -> None:
    path = tmp_path / "contexts.toml"
    path.write_text(CONTEXTS)
    allowed = "context 'adapted': adapter: 'strong' does not exist; those of its model: none"
    with pytest.raises(ContextsError, match=allowed):
        Start(Settings(_env_file=None, contexts_file=path, context_type="general"))
