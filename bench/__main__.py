"""``python -m bench``: a streaming load on the server, beside a bare decode loop over the same library.

Ratios are what to trust: both sides run in turn, round by round, and the medians are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from app.hub import resolve_model
from app.settings import load, physical_cores
from bench.bare import BareLoop
from bench.client import Timing, ask

# fmt: off
WORDS = [
    "river", "stone", "market", "silver", "winter", "garden", "teacher", "engine", "music", "yellow",
    "bridge", "coffee", "planet", "window", "forest", "letter", "summer", "castle", "doctor", "island",
    "mirror", "pocket", "rocket", "shadow", "ticket", "valley",
]
# fmt: on


@dataclass(frozen=True)
class Load:
    """One row: how many at once, and what came of it."""

    concurrency: int
    timings: list[Timing]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens by wall time, prefill included."""
        return sum(t.generated_tokens for t in self.timings) / self.seconds

    @property
    def decode_rate(self) -> float:
        """Tokens per second while all of a wave decode: from the last first token to the first last one."""
        rates = []
        for begin in range(0, len(self.timings), self.concurrency):
            wave = self.timings[begin : begin + self.concurrency]
            start, end = max(t.pieces_at[0] for t in wave), min(t.pieces_at[-1] for t in wave)
            tokens = sum(
                sum(start < at <= end for at in t.pieces_at) * t.generated_tokens / len(t.pieces_at)
                for t in wave
            )
            rates.append(tokens / (end - start))
        return median(rates)


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def run_load(url: str, concurrency: int, waves: int, n_words: int, n_tokens: int) -> Load:
    """Send waves of ``concurrency`` simultaneous requests with prompts that nobody sent before."""
    timings: list[Timing] = []
    seconds = 0.0
    for _ in range(waves):
        queries = [" ".join(random.choices(WORDS, k=n_words)) for _ in range(concurrency)]
        fields = {"max_tokens": n_tokens, "ignore_eos": True, "temperature": 0.8}
        started = time.perf_counter()
        timings += await asyncio.gather(*(ask(url, {"query": q, **fields}) for q in queries))
        seconds += time.perf_counter() - started
    return Load(concurrency, timings, seconds)


async def words_for(url: str, n_prompt: int) -> int:
    """How many words make a prompt of about ``n_prompt`` tokens, context and template included."""
    n_words = n_prompt // 2
    for _ in range(4):
        timing = await ask(url, {"query": " ".join(random.choices(WORDS, k=n_words)), "max_tokens": 2})
        n_words = max(1, n_words + n_prompt - timing.prompt_tokens)
    return n_words


@contextlib.contextmanager
def serving(max_sequences: int) -> Iterator[str]:
    """A server of our own on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {"HTTP_ADDRESS": address, "MAX_SEQUENCES": str(max_sequences)}
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "serve"], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"http://{address}/ready").status == 200:
                    break
            if process.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.1)
        yield f"http://{address}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def print_table(loads: list[Load]) -> None:
    """One row a concurrency, in Markdown."""
    print("\n| at once | tokens/s | decode tokens/s | TTFT p50 / p99 ms | inter-token p50 / p99 ms |")
    print("| --- | --- | --- | --- | --- |")
    for load_ in loads:
        ttft = [1e3 * t.ttft for t in load_.timings]
        gaps = [1e3 * gap for t in load_.timings for gap in t.gaps]
        print(
            f"| {load_.concurrency} | {load_.tokens_per_second:.0f} | {load_.decode_rate:.0f} "
            f"| {percentile(ttft, 0.5):.0f} / {percentile(ttft, 0.99):.0f} "
            f"| {percentile(gaps, 0.5):.1f} / {percentile(gaps, 0.99):.1f} |"
        )


async def main() -> None:
    """Run all rows, round by round, with the bare loops between them."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=6, help="waves of each concurrency")
    parser.add_argument("--prompt-tokens", type=int, default=135)
    parser.add_argument("--tokens", type=int, default=48, help="generated by each request")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()

    settings = load()
    threads = settings.model_threads or physical_cores()
    bare_sizes = sorted({1, max(options.concurrency)})
    bare = {n: BareLoop(resolve_model(settings), n, threads) for n in bare_sizes}
    bare_rates: dict[int, list[float]] = {n: [] for n in bare_sizes}
    waves: dict[int, list[Load]] = {n: [] for n in options.concurrency}
    with serving(max(options.concurrency)) as url:
        n_words = await words_for(url, options.prompt_tokens)
        for _ in range(options.rounds):
            for n in bare_sizes:
                bare_rates[n].append(bare[n].decode_rate(options.prompt_tokens, options.tokens))
            for n in options.concurrency:
                waves[n].append(await run_load(url, n, 1, n_words, options.tokens))
    loads = [
        Load(n, [t for w in waves[n] for t in w.timings], sum(w.seconds for w in waves[n]))
        for n in options.concurrency
    ]
    print_table(loads)
    report = {f"bare decode tokens/s of {n}": round(median(bare_rates[n]), 1) for n in bare_sizes}
    by_n = {load_.concurrency: load_.decode_rate for load_ in loads}
    for n in bare_sizes:
        if n in by_n:
            report[f"served / bare decode of {n}"] = round(by_n[n] / median(bare_rates[n]), 3)
    if 1 in by_n and len(by_n) > 1:
        most = max(by_n)
        report[f"decode of {most} at once / of 1"] = round(by_n[most] / by_n[1], 2)
    print()
    for name, figure in report.items():
        print(f"{name}: {figure}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


asyncio.run(main())
