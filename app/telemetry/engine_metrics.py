"""Metrics of the engine. A step costs a few additions; Prometheus' format is made when it is requested."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from app.telemetry.distribution import Distribution

if TYPE_CHECKING:
    from app.engine.cache.kv_state import CacheFigures
    from app.engine.report import StepReport

# Seconds. On CPUs a token takes 3 ms (one stream of a small model) to seconds (many streams of a large
# model).
_TOKEN_BUCKETS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_STEP_TOKEN_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class EngineFigures:
    """Sums over all steps of one engine, and the state after the last one. Written on the event loop."""

    def __init__(self) -> None:
        self.is_loaded = True  # an engine that does not run is down, unless `on_unload` says otherwise
        self.is_alive = False
        self.n_cells = 0
        self.bytes_per_cell = 0.0
        self.last: StepReport | None = None
        self.last_step_at = 0.0
        self.n_prompt = self.n_cached = self.n_queried = 0
        self.n_generated = self.n_drafted = self.n_accepted = 0
        self.hits = dict.fromkeys(("kv", "ram", "disk"), 0)
        self.per_token = Distribution(_TOKEN_BUCKETS)
        self.gaps = Distribution(_TOKEN_BUCKETS)
        self.steps = {phase: Distribution(_TOKEN_BUCKETS) for phase in ("prefill", "decode", "mixed")}
        self.sequences = Distribution(_BATCH_BUCKETS)
        self.tokens = Distribution(_STEP_TOKEN_BUCKETS)

    def on_start(self, n_cells: int, kv_bytes: int) -> None:
        """Record the start of the engine and the size of its KV memory."""
        self.is_loaded = self.is_alive = True
        self.n_cells, self.bytes_per_cell = n_cells, kv_bytes / n_cells

    def on_end(self) -> None:
        """Record the end of the engine."""
        self.is_alive = False

    def on_unload(self) -> None:
        """Record that the model is not loaded. Its sums remain."""
        self.is_loaded = self.is_alive = False
        self.last, self.n_cells = None, 0

    def on_step(self, report: StepReport) -> None:
        """Add a step."""
        self.last = report
        if not report.n_sequences:
            return  # a cancellation or a loaded context, without a computation
        self.last_step_at = time.time()
        seconds = report.seconds
        if report.generated_tokens:
            self.per_token.add(seconds, report.generated_tokens)
        phase = "decode" if not report.prompt_tokens else "mixed" if report.n_decoding else "prefill"
        self.steps[phase].add(seconds)
        self.sequences.add(report.n_sequences)
        self.tokens.add(report.n_tokens)
        self.n_generated += report.generated_tokens
        self.n_drafted += report.draft_tokens
        self.n_accepted += report.accepted_tokens
        self.n_prompt += report.prompt_tokens
        self.n_queried += report.queried_tokens
        self.n_cached += report.cached_tokens
        for tier, n_tokens in report.hits.items():
            self.hits[tier] += n_tokens

    def on_tokens(self, seconds: float, n: int) -> None:
        """Record ``n`` tokens of an answer, ``seconds`` after its previous tokens."""
        self.gaps.add(seconds / n, n)


class EngineMetrics(Collector):
    """The figures of all engines. With several models, each series has the label ``model``."""

    def __init__(self, instance: str, models: Sequence[str]) -> None:
        """``models``: their names; empty for a single model, whose series have no such label."""
        self._names = ["instance", "model"] if models else ["instance"]
        self.engines = {name: EngineFigures() for name in models or [""]}
        self._engines = [
            ([instance, name] if models else [instance], figures) for name, figures in self.engines.items()
        ]

    def figures(self) -> dict[str, float]:
        """Sums of the main metrics over all engines, by name and value of a label. Takes microseconds."""
        engines = self.engines.values()
        cells = [_cells(engine) for engine in engines]
        return {
            "running_requests": sum(engine.last.running for engine in engines if engine.last),
            "waiting_requests": sum(engine.last.waiting for engine in engines if engine.last),
            **{f"kv_cache_cells.{state}": sum(one[state] for one in cells) for state in cells[0]},
            "prompt_tokens_total": sum(engine.n_prompt for engine in engines),
            "generated_tokens_total": sum(engine.n_generated for engine in engines),
            "prefix_cache_queries_total": sum(engine.n_queried for engine in engines),
            **{
                f"prefix_cache_hits_total.{tier}": sum(engine.hits[tier] for engine in engines)
                for tier in ("kv", "ram", "disk")
            },
        }

    def collect(self) -> Iterator[Metric]:
        """All metrics; called by prometheus_client."""
        yield from self._gauges()
        yield from self._counters()
        for name, doc, of in _HISTOGRAMS:
            histogram = HistogramMetricFamily(name, doc, labels=self._names)
            for labels, figures in self._engines:
                values = of(figures)
                histogram.add_metric(labels, values.buckets(), values.sum)
            yield histogram
        steps = HistogramMetricFamily(
            "iteration_duration_seconds", "Duration of an engine step.", labels=[*self._names, "phase"]
        )
        for labels, figures in self._engines:
            for phase, values in figures.steps.items():
                steps.add_metric([*labels, phase], values.buckets(), values.sum)
        yield steps

    def _gauges(self) -> Iterator[Metric]:
        loaded = [(labels, figures) for labels, figures in self._engines if figures.is_loaded]
        for name, doc, of in _GAUGES:
            gauge = GaugeMetricFamily(name, doc, labels=self._names)
            for labels, figures in loaded:
                gauge.add_metric(labels, of(figures))
            yield gauge
        for name, doc, label, by in (
            ("kv_cache_cells", "KV cells in tokens.", "state", _cells),
            ("prefix_cache_bytes", "Size of reusable prefixes in bytes.", "tier", _prefix_bytes),
        ):
            gauge = GaugeMetricFamily(name, doc, labels=[*self._names, label])
            for labels, figures in loaded:
                for value, number in by(figures).items():
                    gauge.add_metric([*labels, value], number)
            yield gauge

    def _counters(self) -> Iterator[Metric]:
        for name, doc, of in _COUNTERS:
            counter = CounterMetricFamily(name, doc, labels=self._names)
            for labels, figures in self._engines:
                counter.add_metric(labels, of(figures))
            yield counter
        hits = CounterMetricFamily(
            "prefix_cache_hits", "Prompt tokens found in the prefix cache.", labels=[*self._names, "tier"]
        )
        for labels, figures in self._engines:
            for tier, n_tokens in figures.hits.items():
                hits.add_metric([*labels, tier], n_tokens)
        yield hits


def _last(of: Callable[[StepReport], float]) -> Callable[[EngineFigures], float]:
    """A figure of the last step; 0 before the first."""
    return lambda figures: of(figures.last) if figures.last else 0


def _cached(of: Callable[[CacheFigures], float]) -> Callable[[EngineFigures], float]:
    return _last(lambda last: of(last.cache))


_HISTOGRAMS: tuple[tuple[str, str, Callable[[EngineFigures], Distribution]], ...] = (
    (
        "token_creation_duration",
        "Duration in seconds of the engine step that generated a token, per token.",
        lambda figures: figures.per_token,
    ),
    (
        "inter_token_latency_seconds",
        "Time between a token of an answer and the previous one.",
        lambda figures: figures.gaps,
    ),
    ("iteration_sequences", "Sequences per engine step.", lambda figures: figures.sequences),
    ("iteration_tokens_total", "Computed tokens per engine step.", lambda figures: figures.tokens),
)
_GAUGES: tuple[tuple[str, str, Callable[[EngineFigures], float]], ...] = (
    ("engine_alive", "1 while the engine runs.", lambda figures: float(figures.is_alive)),
    (
        "engine_last_step_timestamp_seconds",
        "Time of the last engine step.",
        lambda figures: figures.last_step_at,
    ),
    ("running_requests", "Requests in prefill or decode.", _last(lambda last: last.running)),
    ("waiting_requests", "Requests in the queue.", _last(lambda last: last.waiting)),
    (
        "kv_cache_usage_perc",
        "Share of the KV cells that running requests use, from 0 to 1.",
        lambda figures: _last(lambda last: last.running_cells)(figures) / max(figures.n_cells, 1),
    ),
    ("prefix_cache_states", "States in the prefix cache.", _cached(lambda cache: cache.n_states)),
    (
        "prefix_cache_evictions",
        "States evicted from the prefix cache.",
        _cached(lambda cache: cache.n_evicted),
    ),
    (
        "prefix_cache_checkpoints",
        "States saved at the ends of turns.",
        _cached(lambda cache: cache.n_checkpoints),
    ),
)

_COUNTERS: tuple[tuple[str, str, Callable[[EngineFigures], float]], ...] = (
    ("prompt_tokens", "Prefilled prompt tokens.", lambda figures: figures.n_prompt),
    ("cached_prompt_tokens", "Prompt tokens from the prefix cache.", lambda figures: figures.n_cached),
    ("generated_tokens", "Generated tokens.", lambda figures: figures.n_generated),
    ("draft_tokens", "Draft tokens of speculative decoding.", lambda figures: figures.n_drafted),
    ("accepted_draft_tokens", "Accepted draft tokens.", lambda figures: figures.n_accepted),
    (
        "prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache.",
        lambda figures: figures.n_queried,
    ),
)


def _cells(figures: EngineFigures) -> Mapping[str, float]:
    last = figures.last
    running, idle = (last.running_cells, last.idle_cells) if last else (0, 0)
    return {"running": running, "idle": idle, "free": figures.n_cells - running - idle}


def _prefix_bytes(figures: EngineFigures) -> Mapping[str, float]:
    last = figures.last
    if last is None:
        return {"kv": 0, "ram": 0, "disk": 0}
    return {
        "kv": last.idle_cells * figures.bytes_per_cell,
        "ram": last.cache.n_bytes,
        "disk": last.cache.n_disk_bytes,
    }
