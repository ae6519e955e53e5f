"""Faults of a server: in its threads, while its model loads, and in one of its contexts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx

from tests.conftest import Server, changed_program

Start = Callable[..., Server]


def test_a_fault_of_the_engine_thread_ends_the_process(start_server: Start, tmp_path: Path) -> None:
    flag = tmp_path / "fail"
    fault = (
        "from pathlib import Path\n"
        "from app.engine.engine import Engine\n"
        "step = Engine.step\n"
        "def failing(core):\n"
        f"    if Path({str(flag)!r}).exists():\n"
        "        raise RuntimeError('forced')\n"
        "    step(core)\n"
        "Engine.step = failing\n"
    )
    server = start_server(changed_program(tmp_path, fault)).wait_until()
    body = {
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 1500,
        "stream": True,
        "ignore_eos": True,
    }
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        first = next(lines)
        flag.touch()
        text = "\n".join([first, *lines])
    assert '"error"' in text
    assert "the engine failed: forced" in text
    try:
        ready = httpx.get(f"{server.url}/ready")
    except httpx.TransportError:
        pass  # the port is closed
    else:
        assert (ready.status_code, ready.json()["status"]) == (503, "failed")
    assert server.process.wait(60) == 3
    assert "error: the engine failed: forced" in server.output()


def test_a_fault_of_the_embedding_thread_ends_the_process_after_running_answers(
    start_server: Start, tmp_path: Path
) -> None:
    fault = (
        "from app.engine.embedder import Embedder\n"
        "def failing(*_arguments):\n"
        "    raise RuntimeError('forced')\n"
        "Embedder._fill = failing\n"
    )
    settings = {"EMBEDDING_MODEL": "all-MiniLM-L6-v2", "SHUTDOWN_GRACE": "200"}
    server = start_server(changed_program(tmp_path, fault), **settings).wait_until()
    body = {"query": "Tell me a story.", "max_tokens": 300, "ignore_eos": True, "details": True}
    with httpx.stream("POST", f"{server.url}/token_stream", json=body, timeout=60) as response:
        parts = response.iter_text()
        first = next(parts)
        vectors = httpx.post(f"{server.url}/v1/embeddings", json={"input": "The oak."}, timeout=60)
        text = "".join([first, *parts])
    assert vectors.status_code == 500
    assert "the embedding model failed: forced" in vectors.json()["error"]["message"]
    assert '"generated_tokens": 300' in text
    assert server.process.wait(60) == 3
    assert "error: the embedding model failed: forced" in server.output()


def test_an_unexpected_error_while_the_model_loads_ends_the_process(
    start_server: Start, tmp_path: Path
) -> None:
    fault = (
        "from app.engine import llama\n"
        "def failing(*_arguments, **_options):\n"
        "    raise OSError(5, 'Input/output error')\n"
        "llama.Model.__init__ = failing\n"
    )
    server = start_server(changed_program(tmp_path, fault))
    assert server.process.wait(60) == 1
    output = server.output()
    assert "Traceback" in output
    assert "error: the start failed: OSError: [Errno 5] Input/output error" in output


def test_contexts_that_the_model_rejects_are_reported_and_the_others_work(
    start_server: Start, tmp_path: Path
) -> None:
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}"
        "{% if 'pirate' in m.content %}{{ raise_exception('no pirates') }}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    contexts = tmp_path / "contexts.toml"
    contexts.write_text(
        '[contexts.general]\nprompt = "Answer."\n[contexts.sea]\nprompt = "Speak like a pirate."\n'
        f'[contexts.law]\nprompt = "{"right " * 300}"\n'
    )
    limits = {"MAX_INPUT_LENGTH": "200", "MODEL_MAX_TOKEN": "100"}
    server = start_server(TOKENIZER_REPO=str(tmp_path), CONTEXTS_FILE=str(contexts), **limits).wait_until()
    answer = httpx.post(f"{server.url}/token_stream", json={"query": "Hi", "max_tokens": 3}, timeout=60)
    assert answer.status_code == 200
    rejected = httpx.post(f"{server.url}/token_stream", json={"query": "Hi", "context": "sea"}, timeout=60)
    assert rejected.status_code == 422
    assert "no pirates" in rejected.json()["error"]
    rejected = httpx.post(f"{server.url}/token_stream", json={"query": "Hi", "context": "law"}, timeout=60)
    assert rejected.status_code == 422
    assert "MAX_INPUT_LENGTH" in rejected.json()["error"]
    reasons = httpx.get(f"{server.url}/contexts").json()["refused"]
    assert reasons.keys() == {"sea", "law"}
    assert reasons["sea"].startswith("the chat template rejects it (no pirates); ")
    assert "a prompt of at most 200; shorten it, or raise N_CTX or MAX_INPUT_LENGTH" in reasons["law"]
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready", "contexts_refused": reasons}
    assert server.stop() == 0
    for name, reason in reasons.items():
        assert f"context '{name}' is rejected, and so are its requests: {reason}" in server.output()
