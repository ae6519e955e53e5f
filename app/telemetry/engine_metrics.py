"""Metrics of the engine. A step costs a few additions; Prometheus' format is made when it is requested."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.telemetry.distribution import Distribution

if TYPE_CHECKING:
    from app.engine.report import StepReport

# Seconds. On CPUs a token takes 3 ms (one stream of a small model) to seconds (many streams of a large
# model).
_TOKEN_BUCKETS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_STEP_TOKEN_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class EngineMetrics(Collector):
    """Sums over all steps, and the state after the last one. Written on the event loop."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._is_alive = False
        self._n_cells = 0
        self._bytes_per_cell = 0.0
        self._last: StepReport | None = None
        self._last_step_at = 0.0
        self._n_prompt = self._n_cached = self._n_queried = 0
        self._n_generated = self._n_drafted = self._n_accepted = 0
        self._hits = dict.fromkeys(("kv", "ram", "disk"), 0)
        self._per_token = Distribution(_TOKEN_BUCKETS)
        self._gaps = Distribution(_TOKEN_BUCKETS)
        self._steps = {phase: Distribution(_TOKEN_BUCKETS) for phase in ("prefill", "decode", "mixed")}
        self._sequences = Distribution(_BATCH_BUCKETS)
        self._tokens = Distribution(_STEP_TOKEN_BUCKETS)

    def on_start(self, n_cells: int, kv_bytes: int) -> None:
        """Record the start of the engine and the size of its KV memory."""
        self._is_alive, self._n_cells, self._bytes_per_cell = True, n_cells, kv_bytes / n_cells

    def on_end(self) -> None:
        """Record the end of the engine."""
        self._is_alive = False

    def on_step(self, report: StepReport) -> None:
        """Add a step."""
        self._last = report
        if not report.n_sequences:
            return  # a cancellation or a loaded context, without a computation
        self._last_step_at = time.time()
        seconds = report.seconds
        if report.generated_tokens:
            self._per_token.add(seconds, report.generated_tokens)
        phase = "decode" if not report.prompt_tokens else "mixed" if report.n_decoding else "prefill"
        self._steps[phase].add(seconds)
        self._sequences.add(report.n_sequences)
        self._tokens.add(report.n_tokens)
        self._n_generated += report.generated_tokens
        self._n_drafted += report.draft_tokens
        self._n_accepted += report.accepted_tokens
        self._n_prompt += report.prompt_tokens
        self._n_queried += report.queried_tokens
        self._n_cached += report.cached_tokens
        for tier, n_tokens in report.hits.items():
            self._hits[tier] += n_tokens

    def on_tokens(self, seconds: float, n: int) -> None:
        """Record ``n`` tokens of an answer, ``seconds`` after its previous tokens."""
        self._gaps.add(seconds / n, n)

    def collect(self) -> Iterator[Metric]:
        """All metrics; called by prometheus_client."""
        yield from self._gauges()
        yield from self._counters()
        for name, doc, values in (
            (
                "token_creation_duration",
                "Duration in seconds of the engine step that generated a token, per token.",
                self._per_token,
            ),
            (
                "inter_token_latency_seconds",
                "Time between a token of an answer and the previous one.",
                self._gaps,
            ),
            ("iteration_sequences", "Sequences per engine step.", self._sequences),
            ("iteration_tokens_total", "Computed tokens per engine step.", self._tokens),
        ):
            histogram = HistogramMetricFamily(name, doc, labels=["instance"])
            histogram.add_metric([self._instance], values.buckets(), values.sum)
            yield histogram
        steps = HistogramMetricFamily(
            "iteration_duration_seconds", "Duration of an engine step.", labels=["instance", "phase"]
        )
        for phase, values in self._steps.items():
            steps.add_metric([self._instance, phase], values.buckets(), values.sum)
        yield steps

    def _gauges(self) -> Iterator[Metric]:
        last = self._last
        running, idle = (last.running_cells, last.idle_cells) if last else (0, 0)
        cache = last.cache if last else None
        single = (
            ("engine_alive", "1 while the engine runs.", float(self._is_alive)),
            ("engine_last_step_timestamp_seconds", "Time of the last engine step.", self._last_step_at),
            ("running_requests", "Requests in prefill or decode.", last.running if last else 0),
            ("waiting_requests", "Requests in the queue.", last.waiting if last else 0),
            (
                "kv_cache_usage_perc",
                "Share of the KV cells that running requests use, from 0 to 1.",
                running / max(self._n_cells, 1),
            ),
            ("prefix_cache_states", "States in the prefix cache.", cache.n_states if cache else 0),
            (
                "prefix_cache_evictions",
                "States evicted from the prefix cache.",
                cache.n_evicted if cache else 0,
            ),
            (
                "prefix_cache_checkpoints",
                "States saved at the ends of turns.",
                cache.n_checkpoints if cache else 0,
            ),
        )
        for name, doc, value in single:
            gauge = GaugeMetricFamily(name, doc, labels=["instance"])
            gauge.add_metric([self._instance], value)
            yield gauge
        cells = {"running": running, "idle": idle, "free": self._n_cells - running - idle}
        yield self._by("kv_cache_cells", "KV cells in tokens.", "state", cells)
        tiers = {
            "kv": idle * self._bytes_per_cell,
            "ram": cache.n_bytes if cache else 0,
            "disk": cache.n_disk_bytes if cache else 0,
        }
        yield self._by("prefix_cache_bytes", "Size of reusable prefixes in bytes.", "tier", tiers)

    def _by(self, name: str, doc: str, label: str, values: Mapping[str, float]) -> Metric:
        gauge = GaugeMetricFamily(name, doc, labels=["instance", label])
        for value, figure in values.items():
            gauge.add_metric([self._instance, value], figure)
        return gauge

    def _counters(self) -> Iterator[Metric]:
        for name, doc, value in (
            ("prompt_tokens", "Prefilled prompt tokens.", self._n_prompt),
            ("cached_prompt_tokens", "Prompt tokens from the prefix cache.", self._n_cached),
            ("generated_tokens", "Generated tokens.", self._n_generated),
            ("draft_tokens", "Draft tokens of speculative decoding.", self._n_drafted),
            ("accepted_draft_tokens", "Accepted draft tokens.", self._n_accepted),
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", self._n_queried),
        ):
            counter = CounterMetricFamily(name, doc, labels=["instance"])
            counter.add_metric([self._instance], value)
            yield counter
        hits = CounterMetricFamily(
            "prefix_cache_hits", "Prompt tokens found in the prefix cache.", labels=["instance", "tier"]
        )
        for tier, n_tokens in self._hits.items():
            hits.add_metric([self._instance, tier], n_tokens)
        yield hits
