"""Parallel requests and their figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from bench.client import Timing
from bench.prompts import Question
from bench.servers import Server

Figures = dict[str, float]
# Figures of each round, by workload and variant.
Rounds = dict[str, dict[str, list[Figures]]]
T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    """Scale of a load: ``share`` of its requests, with a minimum that keeps every client busy."""

    share: float

    def n(self, requests: int, at_least: int) -> int:
        return max(at_least, round(requests * self.share))


@dataclass(frozen=True)
class Load:
    """Timings of a number of requests, and the wall time of all of them."""

    timings: list[Timing]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of wall time, which includes prefill."""
        return sum(t.generated_tokens for t in self.timings) / self.seconds

    def figures(self) -> Figures:
        """Tokens per second, and percentiles of TTFT and inter-token latency in milliseconds."""
        ttft = [1e3 * t.ttft for t in self.timings]
        gaps = [1e3 * gap for t in self.timings for gap in t.gaps]
        return {
            "tokens_per_second": self.tokens_per_second,
            "ttft_p50": percentile(ttft, 0.5),
            "ttft_p99": percentile(ttft, 0.99),
            "gap_p50": percentile(gaps, 0.5),
            "gap_p99": percentile(gaps, 0.99),
        }


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile: the smallest value that at least ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


async def parallel(
    items: Iterable[T], concurrency: int, send: Callable[[T], Awaitable[Timing]]
) -> list[Timing]:
    """Send every item with ``concurrency`` clients. A client sends the next item after an answer."""
    waiting = iter(items)

    async def client() -> list[Timing]:
        return [await send(item) for item in waiting]

    answers = await asyncio.gather(*(client() for _ in range(concurrency)))
    return [timing for of_client in answers for timing in of_client]


async def run_load(server: Server, questions: Sequence[Question], concurrency: int, n_tokens: int) -> Load:
    """Send all questions with ``concurrency`` clients."""
    started = time.perf_counter()
    timings = await parallel(questions, concurrency, lambda question: server.ask(question, n_tokens))
    return Load(timings, time.perf_counter() - started)


def wave_rate(wave: Sequence[Timing]) -> float:
    """Tokens per second while all requests of a wave decode.

    The interval starts when every request has its first piece and ends at the first end of an answer.
    """
    start, end = max(t.pieces_at[0] for t in wave), min(t.pieces_at[-1] for t in wave)
    shares = ((sum(start < at <= end for at in t.pieces_at) / len(t.pieces_at), t) for t in wave)
    return sum(share * t.generated_tokens for share, t in shares) / (end - start)


def medians(rounds: Sequence[Figures]) -> Figures:
    """Median of each figure over the rounds."""
    return {name: median(figures[name] for figures in rounds) for name in rounds[0]}


def medians_by_variant(rounds: Rounds) -> dict[str, dict[str, Figures]]:
    """Medians over the rounds, by workload and variant."""
    return {
        workload: {variant: medians(of_variant) for variant, of_variant in variants.items()}
        for workload, variants in rounds.items()
    }
