"""Two replicas on a local Ray, with real clients."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.conftest import ROOT, clean_environment, free_port
from tests.polling import wait_for

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SENTENCE = "Rule {}: the {} station opens at {} and its guard wears a coat with {} buttons. "


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of `serve run` with two engines of one thread."""
    folder, port = tmp_path_factory.mktemp("ray"), free_port()
    script = folder / "cluster.py"
    script.write_text(
        "import signal, sys, ray\n"
        "from ray import serve\n"
        "from app.deploy.ray import build\n"
        f"ray.init(num_cpus=4, include_dashboard=False, _temp_dir={str(folder / 'r')!r}[:40])\n"
        f"serve.start(http_options={{'host': '127.0.0.1', 'port': {port}}})\n"
        "serve.run(build({'REPLICAS': '2', 'N_CTX': '16384', 'ROUTER_SLACK': '4'}))\n"
        "print('ready', flush=True)\n"
        "signal.sigwait([signal.SIGTERM])\n"
        "serve.shutdown(); ray.shutdown()\n"
    )
    # The default niceness is 15: on a busy machine, Serve gives up before its processes have started.
    environment = clean_environment(
        PYTHONPATH=str(ROOT), RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(script)], stdout=log, stderr=log, env=environment, cwd=ROOT
        )
    end = time.monotonic() + 200
    while "ready" not in (folder / "log").read_text().split():
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(60)


def metrics(url: str) -> dict[str, dict[str, float]]:
    """Values by metric and replica."""
    found: dict[str, dict[str, float]] = {}
    for line in httpx.get(f"{url}/metrics", timeout=20).raise_for_status().text.splitlines():
        if match := re.fullmatch(r'(\w+)\{instance="([^"]+)"\} (\S+)', line):
            found.setdefault(match[1], {})[match[2]] = float(match[3])
    return found


def ask(url: str, system: str, question: str, key: str | None = None) -> int:
    """Number of cached prompt tokens."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    headers = {"X-Prefix-Key": key} if key else {}
    body = {"messages": messages, "max_tokens": 1}
    response = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    return int(response.raise_for_status().json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def home_of(url: str, key: str) -> str:
    """The replica that answers requests with a key."""
    before = metrics(url)["prompt_tokens_total"]
    ask(url, f"You are {key}.", "Why?", key)
    after = metrics(url)["prompt_tokens_total"]
    (replica,) = (name for name in after if after[name] > before.get(name, 0))
    return replica


def key_for_each(url: str) -> dict[str, str]:
    """A key for each of the two replicas."""
    keys: dict[str, str] = {}
    for number in range(40):
        keys.setdefault(home_of(url, f"key-{number}"), f"key-{number}")
        if len(keys) == 2:
            return keys
    raise AssertionError("one replica answers all requests")


def test_streams_come_whole_and_in_parts(url: str) -> None:
    body = {"query": "Where is located Paris ?", "max_tokens": 40, "ignore_eos": True}
    whole = httpx.post(f"{url}/token_stream", json=body, timeout=60).text
    with httpx.stream("POST", f"{url}/token_stream", json=body, timeout=60) as response:
        parts = list(response.iter_text())
    assert len(parts) > 5
    assert "".join(parts) == whole


def test_the_openai_client_streams_and_reads_errors(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    chat = client.chat.completions
    question: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Where is located Paris ?"}]
    whole = chat.create(model="any", messages=question, max_tokens=20).choices[0].message.content
    stream = chat.create(model="any", messages=question, max_tokens=20, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == whole
    with pytest.raises(openai.BadRequestError, match="temperature"):
        chat.create(model="any", messages=question, temperature=-1)


def test_bodies_beyond_the_limit_are_rejected(url: str) -> None:
    response = httpx.post(f"{url}/token_stream", json={"query": "x" * (1 << 20)}, timeout=60)
    assert response.status_code == 413, response.text


def test_a_response_has_the_id_of_its_request_once(url: str) -> None:
    """Ray Serve adds the header too."""
    headers = {"X-Request-ID": "abc"}
    answer = httpx.post(f"{url}/v1/messages", json={"max_tokens": 0}, headers=headers, timeout=60)
    assert answer.json()["request_id"] == "abc"
    for response in (answer, httpx.get(f"{url}/metrics", headers=headers, timeout=60)):
        assert response.headers.get_list("x-request-id") == ["abc"]


def test_contexts_that_clients_send_stay_on_one_replica(url: str) -> None:
    """Each context is prefilled once, though the server has two caches."""
    texts = {
        topic: "".join(SENTENCE.format(i, topic, i % 12, topic + i) for i in range(12)) for topic in range(6)
    }
    for topic, system in texts.items():
        ask(url, system, f"What is {topic}?")
    assert all(ask(url, system, question) > 200 for system in texts.values() for question in ("Why?", "(b)"))
    used = metrics(url)["prompt_tokens_total"]
    assert len(used) == 2


def test_a_client_that_leaves_ends_its_answer(url: str) -> None:
    before = sum(metrics(url)["generated_tokens_total"].values())
    body = {"query": "Count.", "max_tokens": 1500, "ignore_eos": True}
    with httpx.stream("POST", f"{url}/token_stream", json=body, timeout=60) as response:
        parts = response.iter_text()  # its end closes the response
        next(parts)
        assert sum(metrics(url)["running_requests"].values()) == 1
    wait_for(lambda: not sum(metrics(url)["running_requests"].values()))
    assert sum(metrics(url)["generated_tokens_total"].values()) - before < 1500


def test_a_killed_replica_costs_only_its_own_answers(url: str) -> None:
    keys = key_for_each(url)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def stream(key: str) -> Iterator[str]:
        question: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Count."}]
        for chunk in client.chat.completions.create(
            model="any",
            messages=question,
            max_tokens=300,
            stream=True,
            extra_headers={"X-Prefix-Key": key},
            extra_body={"ignore_eos": True},
        ):
            yield from (choice.finish_reason or choice.delta.content or "" for choice in chunk.choices)

    lost, kept = (stream(key) for key in keys.values())
    next(lost), next(kept)
    (replica, *_) = keys
    os.kill(process_of(replica), signal.SIGKILL)
    with pytest.raises(openai.APIError, match="repeat the request"):
        list(lost)
    assert list(kept)[-1] == "length"
    assert ask(url, "You are kind.", "Why?", keys[replica]) >= 0
    wait_for(lambda: len(metrics(url).get("engine_alive", {}).keys() - {replica}) == 2, interval=0.5)


def process_of(replica: str) -> int:
    """The process of a replica: its log file has the replica's name and is open."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"ray::ServeReplica" in (folder / "cmdline").read_bytes() and any(
                replica in str(file.readlink()) for file in (folder / "fd").iterdir()
            ):
                return int(folder.name)
    raise AssertionError(f"no process of {replica}")
