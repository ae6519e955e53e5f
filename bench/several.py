"""``python -m bench.several [THREADS]``: two models at once against one after the other, on one server.

Both models are the default one, under two names. Each round sends as many requests in both ways. CPU time is
reported too: other programs affect it less than the time on the clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests.conftest import MODEL, Server

NAMES = ("first", "second")
N_REQUESTS = 8  # per model and way
AT_ONCE = 4  # per model
N_TOKENS = 32
N_WORDS = 60
ROUNDS = 3
WORDS = ["river", "bridge", "market", "winter", "engine", "letter", "garden", "seven", "count", "list"]


def question(seed: int, n_words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n_words))


async def ask(http: httpx.AsyncClient, model: str, seed: int, gaps: list[float]) -> None:
    """Stream one answer, and add the times between its tokens to ``gaps``."""
    body = {"model": model, "prompt": question(seed, N_WORDS), "max_tokens": N_TOKENS, "stream": True}
    last = None
    async with http.stream("POST", "/v1/completions", json={**body, "ignore_eos": True}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                now = time.perf_counter()
                gaps += [now - last] if last is not None else []
                last = now


async def load(http: httpx.AsyncClient, model: str, seed: int, gaps: list[float]) -> None:
    """Send all requests of one model, some at once."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(index: int) -> None:
        async with limit:
            await ask(http, model, seed + index, gaps)

    await asyncio.gather(*(one(index) for index in range(N_REQUESTS)))


async def beside(http: httpx.AsyncClient, seed: int, *, busy: bool) -> float:
    """The 95th percentile of the gaps of a stream; ``busy``: beside long prompts of the other model."""
    gaps: list[float] = []
    stream = asyncio.ensure_future(ask(http, NAMES[0], seed, gaps))
    index = 0
    while not stream.done():
        if not busy:
            await asyncio.wait([stream])
            continue
        body = {"model": NAMES[1], "prompt": question(seed + index, 600), "max_tokens": 1}
        await http.post("/v1/completions", json=body)
        index += 1
    return statistics.quantiles(gaps, n=20)[-1]


def cpu_seconds(server: Server) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(server: Server) -> dict[str, float]:
    ratios, costs, first, second = [], [], list[float](), list[float]()
    alone, disturbed = [], []
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as http:
        for number in range(ROUNDS + 1):
            seed = number * 10_000
            started, cpu = time.perf_counter(), cpu_seconds(server)
            for name in NAMES:
                await load(http, name, seed, first)
            one_by_one, cost = time.perf_counter() - started, cpu_seconds(server) - cpu
            started, cpu = time.perf_counter(), cpu_seconds(server)
            await asyncio.gather(*(load(http, name, seed + 5_000, second) for name in NAMES))
            together, cost_together = time.perf_counter() - started, cpu_seconds(server) - cpu
            gap, beside_gap = [await beside(http, seed + 9_000, busy=busy) for busy in (False, True)]
            if number:  # the first round warms up
                ratios.append(one_by_one / together)
                costs.append(cost_together / cost)
                alone.append(gap)
                disturbed.append(beside_gap)
    return {
        "throughput of both at once, relative to one after the other": statistics.median(ratios),
        "CPU time of both at once, relative to one after the other": statistics.median(costs),
        "gap of a stream, one after the other, p50 ms": 1000 * statistics.median(first),
        "gap of a stream, both at once, p50 ms": 1000 * statistics.median(second),
        "gap of a single stream, p95 ms": 1000 * statistics.median(alone),
        "the same beside long prompts of the other model": 1000 * statistics.median(disturbed),
    }


def main() -> int:
    models = ",".join(f"{name}={MODEL}" for name in NAMES)
    with tempfile.TemporaryDirectory() as folder:
        threads = {"MODEL_THREADS": sys.argv[1]} if len(sys.argv) > 1 else {"MODEL_THREADS": ""}
        settings = {"MODELS": models, "MODELS_AT_START": "all", "PREFIX_CACHE_MB": "0", **threads}
        server = Server(Path(folder) / "log", **settings).wait_until()
        try:
            print(json.dumps(asyncio.run(measure(server)), indent=2))
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
