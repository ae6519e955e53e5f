"""A server with the default model and a tiny one: each dialect finds them by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from tests.conftest import Server, changed_program, running_server
from tests.tiny_models import TinyModel

pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "Name a colour."}]
CONTEXTS = """
[contexts.general]
prompt = "You are a helpful assistant."
[contexts.tiny]
prompt = "You are brief."
model = "tiny"
"""
# Writes the number of models in memory on SIGUSR1.
COUNT_MODELS = """
import gc, signal
from pathlib import Path
from app.service.model.model import Model
def count(*_):
    gc.collect()
    Path({path!r}).write_text(str(sum(isinstance(one, Model) for one in gc.get_objects())))
signal.signal(signal.SIGUSR1, count)
"""
# Requests of all dialects whose reply has the name of the model, without that name.
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": QUESTION, "max_tokens": 2},
    "/v1/completions": {"prompt": "The sea is", "max_tokens": 2},
    "/v1/responses": {"input": "Name a colour.", "max_output_tokens": 2},
    "/v1/messages": {"messages": QUESTION, "max_tokens": 2},
    "/v1/decisions": {
        "input": "I love it.",
        "questions": [{"type": "predicate", "name": "praise", "instructions": "Is it praise?"}],
    },
    "/v1/systemone": {
        "state": "I love it.",
        "questions": {"praise": {"type": "noul", "instructions": "Is it praise?"}},
    },
    "/classify": {"query": "I love it.", "choices": ["praise", "blame"]},
    "/api/chat": {"messages": QUESTION, "options": {"num_predict": 2}, "stream": False},
    "/api/generate": {"prompt": "Name a colour.", "options": {"num_predict": 2}, "stream": False},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("several")
    (folder / "contexts.toml").write_text(CONTEXTS)
    models = {
        "MODELS": f"smollm2,tiny={tiny_model('hybrid')}",
        "CONTEXTS_FILE": str(folder / "contexts.toml"),
    }
    sizes = {"N_CTX": "2048", "MAX_SEQUENCES": "2"}
    program = changed_program(folder, COUNT_MODELS.format(path=str(folder / "models")))
    with running_server(folder / "log", program, **models, **sizes) as server:
        yield server


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return server.url


def models_in_memory(server: Server) -> int:
    file: Path = server.log.parent / "models"
    file.unlink(missing_ok=True)
    os.kill(server.process.pid, signal.SIGUSR1)
    end = time.monotonic() + 60
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return int(file.read_text())


def unload(url: str, name: str) -> None:
    unloaded = httpx.post(f"{url}/api/generate", json={"model": name, "keep_alive": 0}).json()
    assert unloaded["done_reason"] == "unload"
    end = time.monotonic() + 60
    while httpx.get(f"{url}/ready").json()["models"][name] != "unloaded":
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_model_is_loaded_by_its_first_request(url: str) -> None:
    """The first test of this file: before it, only the default model is loaded."""
    assert httpx.get(f"{url}/ready").json() == {
        "status": "ready",
        "models": {"smollm2": "ready", "tiny": "unloaded"},
    }
    listed = httpx.get(f"{url}/v1/models").json()
    assert [one["id"] for one in listed["data"]] == ["smollm2", "tiny"]
    assert {one["max_model_len"] for one in listed["data"]} == {1024}
    assert [one["name"] for one in httpx.get(f"{url}/api/tags").json()["models"]] == ["smollm2", "tiny"]
    assert [one["name"] for one in httpx.get(f"{url}/api/ps").json()["models"]] == ["smollm2"]
    loaded = httpx.post(f"{url}/api/generate", json={"model": "tiny:latest"}, timeout=60).json()
    assert (loaded["model"], loaded["done_reason"]) == ("tiny", "load")
    assert [one["name"] for one in httpx.get(f"{url}/api/ps").json()["models"]] == ["smollm2", "tiny"]
    assert httpx.get(f"{url}/ready").json()["models"] == {"smollm2": "ready", "tiny": "ready"}


@pytest.mark.parametrize("path", REQUESTS)
def test_each_dialect_answers_with_the_named_model(url: str, path: str) -> None:
    for name in ("tiny", "smollm2"):
        reply = httpx.post(url + path, json={**REQUESTS[path], "model": name}, timeout=60)
        assert reply.json()["model"] == name, reply.text
    unknown = httpx.post(url + path, json={**REQUESTS[path], "model": "phi-2"})
    assert unknown.status_code == 404
    assert "'phi-2' does not exist; served are: smollm2, tiny" in unknown.text


def test_ollamas_client_shows_and_pulls_only_served_models(url: str) -> None:
    with ollama.Client(host=url) as client:
        families = [(client.show(f"{name}:latest").details or {})["family"] for name in ("tiny", "smollm2")]
        assert families[0] != families[1] == "llama"
        assert client.pull("tiny").status == "success"
        for call in (client.show, client.pull):
            with pytest.raises(ollama.ResponseError, match="'smollm2' and 'tiny'; to serve") as error:
                call("phi-2")
            assert error.value.status_code == 404


def test_the_path_and_the_context_name_models_too(url: str) -> None:
    text = {"inputs": "The sea is", "parameters": {"max_new_tokens": 2}}
    answers = [
        httpx.post(f"{url}/model/{name}", json=text, timeout=60).json() for name in ("tiny", "smollm2")
    ]
    assert answers[0] != answers[1] == httpx.post(url, json=text, timeout=60).json()
    rejected = httpx.post(f"{url}/model/phi-2", json=text)
    assert rejected.status_code == 404
    assert rejected.json()["error_type"] == "unknown_model"
    asked = {"messages": QUESTION, "max_tokens": 2, "context": "tiny"}
    assert httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=60).json()["model"] == "tiny"


def test_metrics_have_the_names_of_the_models(url: str) -> None:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    for name in ("smollm2", "tiny"):
        labels = f'{{instance="default",model="{name}"}}'
        assert f"engine_alive{labels} 1.0" in lines
        [generated] = [line for line in lines if line.startswith(f"generated_tokens_total{labels}")]
        assert float(generated.split()[1]) > 0
        assert any(line.startswith(f"time_to_first_token_duration_count{labels}") for line in lines)


def test_keep_alive_of_ollama_unloads_a_model(url: str) -> None:
    asked = {"model": "tiny", "messages": QUESTION, "options": {"num_predict": 2}, "stream": False}

    def expires_after(**fields: str) -> str:
        unload(url, "tiny")
        unload(url, "tiny")  # of no effect
        assert httpx.post(f"{url}/api/chat", json=asked | fields, timeout=60).status_code == 200
        listed = httpx.get(f"{url}/api/ps").json()["models"]
        [expires] = [one["expires_at"] for one in listed if one["name"] == "tiny"]
        return str(expires)

    assert expires_after().startswith("9999")
    assert not expires_after(keep_alive="5m").startswith("9999"), "the request loads the model"
    wrong = httpx.post(f"{url}/api/chat", json={**asked, "keep_alive": "soon"})
    assert wrong.status_code == 400
    assert "keep_alive: should be seconds" in wrong.json()["error"]
    unload(url, "tiny")
    assert [one["name"] for one in httpx.get(f"{url}/api/ps").json()["models"]] == ["smollm2"]
    assert 'engine_alive{instance="default",model="tiny"}' not in httpx.get(f"{url}/metrics").text


def test_an_unloaded_model_leaves_memory(server: Server) -> None:
    """The task that loads a model has the context of a request, whose record has its answers."""
    asked = {"model": "tiny", "messages": QUESTION, "max_tokens": 2}
    with httpx.Client(base_url=server.url, timeout=60) as client:  # its connection stays open
        assert client.post("/v1/chat/completions", json=asked).status_code == 200
        assert models_in_memory(server) == 2
        unload(server.url, "tiny")
        assert models_in_memory(server) == 1
