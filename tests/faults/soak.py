"""``make soak``: all dialects at random with random cancels; then nothing may have grown.

SOAK_MINUTES sets the duration (30). The first fifth warms up.
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

SETTINGS = {
    "N_CTX": "8192",
    "MAX_SEQUENCES": "4",
    "EMBEDDING_MODEL": "all-MiniLM-L6-v2",
    "PREFIX_CACHE_MB": "64",
}
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


async def client(url: str, seed: int, until: float, statuses: Counter[str]) -> None:
    """Send requests one after another, and cancel a third of them at any moment."""
    rng = random.Random(seed)
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        while time.monotonic() < until:
            path, body = request(rng)
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


def metric(page: str, name: str, label: str = "") -> float:
    """The first value of a metric; ``label``: a label that it has."""
    found = re.search(rf"^{name}(?:{{[^}}]*{label}[^}}]*}})? (\S+)$", page, re.MULTILINE)
    assert found, f"there is no metric {name}"
    return float(found[1])


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


async def load(server: Server, seconds: float, seed: int) -> Counter[str]:
    statuses: Counter[str] = Counter()
    until = time.monotonic() + seconds
    seeds = range(seed * 1000, seed * 1000 + N_CLIENTS)
    await asyncio.gather(*(client(server.url, one, until, statuses) for one in seeds))
    return statuses


def soak(minutes: float) -> int:
    with tempfile.TemporaryDirectory() as folder:
        tasks_file = Path(folder) / "tasks"
        program = changed_program(Path(folder), COUNT_TASKS.format(path=str(tasks_file)))
        server = Server(Path(folder) / "log", program, **SETTINGS).wait_until()
        try:
            statuses = asyncio.run(load(server, minutes * 60 / 5, seed=1))
            before = measure(server, tasks_file)
            statuses += asyncio.run(load(server, minutes * 60 * 4 / 5, seed=2))
            after = measure(server, tasks_file)
            status = server.stop()
        finally:
            server.process.kill()
    print(json.dumps({"requests": statuses, "before": before, "after": after}, indent=2))
    grown = {name for name, size in after.items() if size > before[name] * (1 + MOST_GROWTH)}
    failed = {name for name in statuses if name == "lost" or name.startswith("5")}
    for problem in sorted(grown | failed):
        print(f"FAILED: {problem}")
    return int(bool(grown or failed or status))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(soak(float(os.environ.get("SOAK_MINUTES", "30"))))
