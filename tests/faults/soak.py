"""``make soak``: all dialects at random with random cancels; then nothing may have grown.

SOAK_MINUTES sets the duration (30). The first fifth warms up. The server has the default model and two tiny
ones. MODELS_MEMORY has room for one of these, so they are unloaded for each other. SOAK_MODELS=1: only the
default model.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import Server, changed_program
from tests.tiny_models import write_tiny_model

SETTINGS = {
    "N_CTX": "8192",
    "MAX_SEQUENCES": "4",
    "EMBEDDING_MODEL": "all-MiniLM-L6-v2",
    "PREFIX_CACHE_MB": "64",
}
# The default model needs about 480 MiB with these sizes, a tiny one 210 MiB.
SEVERAL = {"MODELS_PINNED": "smollm2", "MODELS_MEMORY": "800", "IDLE_UNLOAD": "1"}
NAMES = ("smollm2", "tiny", "other")
N_CLIENTS = 12
MOST_GROWTH = 0.02
# Writes the number of asyncio's tasks on SIGUSR1.
COUNT_TASKS = """
import asyncio, signal
from pathlib import Path
signal.signal(signal.SIGUSR1, lambda *_: Path({path!r}).write_text(str(len(asyncio.all_tasks()))))
"""
WORDS = "river bridge market winter engine letter garden seven count list explain why short long"


def text(rng: random.Random, most: int = 120) -> str:
    return " ".join(rng.choices(WORDS.split(), k=rng.randint(1, most)))


def request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body of any dialect."""
    n = rng.randint(1, 60)
    stream = rng.random() < 0.5
    messages = [{"role": "user", "content": text(rng)}]
    tool = {
        "type": "function",
        "function": {"name": "get", "parameters": {"type": "object", "properties": {}}},
    }
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    return rng.choice(
        [
            (
                "/token_stream",
                {"query": text(rng), "max_tokens": n, "context": rng.choice(["general", "sql"])},
            ),
            (
                "/v1/chat/completions",
                {"messages": messages, "max_tokens": n, "stream": stream, "n": rng.randint(1, 2)},
            ),
            (
                "/v1/chat/completions",
                {"messages": messages, "max_tokens": n, "tools": [tool], "stream": stream},
            ),
            (
                "/v1/chat/completions",
                {
                    "messages": messages,
                    "max_tokens": n,
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "a", "schema": schema},
                    },
                },
            ),
            (
                "/v1/completions",
                {"prompt": [text(rng), text(rng)], "max_tokens": n, "stream": stream, "logprobs": 2},
            ),
            ("/generate", {"inputs": text(rng), "parameters": {"max_new_tokens": n, "details": True}}),
            ("/generate_stream", {"inputs": text(rng), "parameters": {"max_new_tokens": n}}),
            ("/invocations", {"messages": messages, "max_tokens": n}),
            ("/v1/embeddings", {"input": [text(rng), text(rng)]}),
            ("/tokenize", {"inputs": text(rng)}),
            ("/chat_tokenize", {"messages": messages}),
            ("/token_stream", {"query": 5}),
        ]
    )


def named(rng: random.Random, path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The request, mostly with the name of a model."""
    if path in ("/generate", "/invocations") and "inputs" in body:
        return f"/model/{rng.choice(NAMES)}", body
    return path, {**body, "model": rng.choice(NAMES)} if rng.random() < 0.8 else body


async def client(url: str, seed: int, until: float, statuses: Counter[str], *, names_models: bool) -> None:
    """Send requests one after another, and cancel a third of them at any moment."""
    rng = random.Random(seed)
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        while time.monotonic() < until:
            path, body = request(rng)
            if names_models:
                path, body = named(rng, path, body)
            patience = rng.expovariate(2.0) if rng.random() < 1 / 3 else 120.0
            try:
                response = await asyncio.wait_for(http.post(path, json=body), patience)
                statuses[str(response.status_code)] += 1
                if response.status_code >= 500:
                    print(f"{path} {body}: {response.status_code} {response.text}", flush=True)
            except asyncio.TimeoutError:
                statuses["cancelled" if patience < 120 else "lost"] += 1
            except httpx.TransportError as error:
                statuses["lost"] += 1
                print(f"{path} {body}: {error!r}", flush=True)


def fill_embedding_buffers(server: Server) -> None:
    """Embed a full batch. The buffers of the embedding model grow to the largest batch, and remain."""
    texts = [WORDS * 4] * 16
    assert httpx.post(f"{server.url}/v1/embeddings", json={"input": texts}, timeout=120).status_code == 200


def metric(page: str, name: str, label: str = "") -> float:
    """The sum of a metric over all models; ``label``: a label that it has."""
    found = re.findall(rf"^{name}(?:{{[^}}]*{label}[^}}]*}})? (\S+)$", page, re.MULTILINE)
    assert found, f"there is no metric {name}"
    return sum(map(float, found))


def measure(server: Server, tasks_file: Path) -> dict[str, float]:
    """Sizes of the idle server."""
    time.sleep(5)
    page = httpx.get(f"{server.url}/metrics").text
    process = Path(f"/proc/{server.process.pid}")
    tasks_file.unlink(missing_ok=True)
    os.kill(server.process.pid, signal.SIGUSR1)
    while not (tasks_file.exists() and tasks_file.read_text()):
        time.sleep(0.05)
    saved = metric(page, "prefix_cache_bytes", 'tier="ram"')
    status = (process / "status").read_text().splitlines()
    # Without pages of the mapped model file, which are read as tokens need them and can be dropped.
    [anonymous] = (int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))
    return {
        "memory without prefix cache, MB": (anonymous - saved) / 1e6,
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
        "tasks": int(tasks_file.read_text()),
        "running requests": metric(page, "running_requests"),
        "waiting requests": metric(page, "waiting_requests"),
    }


async def load(server: Server, seconds: float, seed: int, *, names_models: bool) -> Counter[str]:
    statuses: Counter[str] = Counter()
    until = time.monotonic() + seconds
    seeds = range(seed * 1000, seed * 1000 + N_CLIENTS)
    clients = (client(server.url, one, until, statuses, names_models=names_models) for one in seeds)
    await asyncio.gather(*clients)
    return statuses


def several(folder: Path) -> dict[str, str]:
    """Settings of a server with three models."""
    kinds = {"tiny": write_tiny_model("hybrid", folder / "tiny.gguf")}
    kinds["other"] = write_tiny_model("sliding-window", folder / "other.gguf")
    models = ",".join(["smollm2", *(f"{name}={path}" for name, path in kinds.items())])
    return {"MODELS": models, **SEVERAL}


def soak(minutes: float, *, has_several: bool) -> int:
    with tempfile.TemporaryDirectory() as folder:
        tasks_file = Path(folder) / "tasks"
        program = changed_program(Path(folder), COUNT_TASKS.format(path=str(tasks_file)))
        models = several(Path(folder)) if has_several else {}
        server = Server(Path(folder) / "log", program, **SETTINGS, **models).wait_until()
        try:
            fill_embedding_buffers(server)
            statuses = asyncio.run(load(server, minutes * 60 / 5, 1, names_models=has_several))
            before = measure(server, tasks_file)
            statuses += asyncio.run(load(server, minutes * 60 * 4 / 5, 2, names_models=has_several))
            after = measure(server, tasks_file)
            status = server.stop()
        finally:
            server.process.kill()
        n_unloaded = server.output().count("is unloaded")
    print(
        json.dumps(
            {"requests": statuses, "unloaded models": n_unloaded, "before": before, "after": after}, indent=2
        )
    )
    grown = {name for name, size in after.items() if size > before[name] * (1 + MOST_GROWTH)}
    failed = {name for name in statuses if name == "lost" or name.startswith("5")}
    for problem in sorted(grown | failed):
        print(f"FAILED: {problem}")
    return int(bool(grown or failed or status))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        several_models = os.environ.get("SOAK_MODELS") != "1"
        sys.exit(soak(float(os.environ.get("SOAK_MINUTES", "30")), has_several=several_models))
