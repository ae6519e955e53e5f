"""Metrics in the Prometheus format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

if TYPE_CHECKING:
    from app.engine.report import StepReport

# Seconds. On CPUs a token takes 3 ms (one stream of a small model) to seconds (many streams of a large
# model); an answer takes 0.1 s to minutes.
_TOKEN_BUCKETS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_LOOKUP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_ANSWER_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)


class Metrics:
    """Metrics of one process, all with the label ``instance``."""

    def __init__(self, instance: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

        def histogram(name: str, doc: str, buckets: tuple[float, ...]) -> Histogram:
            metric = Histogram(name, doc, ["instance"], buckets=buckets, registry=self.registry)
            return metric.labels(instance)

        def gauge(name: str, doc: str) -> Gauge:
            return Gauge(name, doc, ["instance"], registry=self.registry).labels(instance)

        def counter(name: str, doc: str) -> Counter:
            return Counter(name, doc, ["instance"], registry=self.registry).labels(instance)

        self._token = histogram(
            "token_creation_duration",
            "Duration in seconds of the engine step that generated a token, per token.",
            _TOKEN_BUCKETS,
        )
        self._response = histogram(
            "inference_response_duration",
            "Seconds from a request to the end of its answer, including tokenization.",
            _ANSWER_BUCKETS,
        )
        self._first_token = histogram(
            "time_to_first_token_duration", "Seconds from a request to the first token.", _ANSWER_BUCKETS
        )
        self._running = gauge("running_requests", "Requests in prefill or decode.")
        self._waiting = gauge("waiting_requests", "Requests in the queue.")
        self._prompt = counter("prompt_tokens", "Prefilled prompt tokens.")
        self._cached = counter("cached_prompt_tokens", "Prompt tokens from the prefix cache.")
        self._generated = counter("generated_tokens", "Generated tokens.")
        self._drafted = counter("draft_tokens", "Draft tokens of speculative decoding.")
        self._accepted = counter("accepted_draft_tokens", "Accepted draft tokens.")
        self._cache_bytes = gauge("prefix_cache_bytes", "RAM of the prefix cache in bytes.")
        self._cache_states = gauge("prefix_cache_states", "States in the prefix cache.")
        self._evicted = gauge("prefix_cache_evictions", "States evicted from the prefix cache.")

        self._lookup = histogram(
            "embedding_duration",
            "Seconds to embed a question and search the knowledge base.",
            _LOOKUP_BUCKETS,
        )
        self._documents = gauge("knowledge_documents", "Indexed documents.")
        self._chunks = gauge("knowledge_chunks", "Indexed passages.")
        self._skipped = gauge("knowledge_skipped_files", "Unreadable files.")
        self._indexed_documents = counter("indexed_documents", "Documents indexed since the start.")
        self._indexed_chunks = counter("indexed_chunks", "Passages indexed since the start.")
        self._skipped_files = counter("skipped_files", "Skipped files since the start, repetitions included.")

    def on_step(self, report: StepReport) -> None:
        """Record an engine step."""
        for _ in range(report.generated_tokens):
            self._token.observe(report.seconds)
        self._generated.inc(report.generated_tokens)
        self._prompt.inc(report.prompt_tokens)
        self._cached.inc(report.cached_tokens)
        self._drafted.inc(report.draft_tokens)
        self._accepted.inc(report.accepted_tokens)
        self._cache_bytes.set(report.cache.n_bytes)
        self._cache_states.set(report.cache.n_states)
        self._evicted.set(report.cache.n_evicted)
        self._running.set(report.running)
        self._waiting.set(report.waiting)

    def on_first_token(self, seconds: float) -> None:
        """Record the TTFT of a request."""
        self._first_token.observe(seconds)

    def on_answer(self, seconds: float) -> None:
        """Record the duration of a complete answer."""
        self._response.observe(seconds)

    def on_lookup(self, seconds: float) -> None:
        """Record the duration of a search in the knowledge base."""
        self._lookup.observe(seconds)

    def on_indexed(self, n_chunks: int, problem: str | None) -> None:
        """Record a file that was indexed, or skipped because of a problem."""
        if problem is None:
            self._indexed_documents.inc()
            self._indexed_chunks.inc(n_chunks)
        else:
            self._skipped_files.inc()

    def on_index(self, n_documents: int, n_chunks: int, n_skipped: int) -> None:
        """Record the size of the index."""
        self._documents.set(n_documents)
        self._chunks.set(n_chunks)
        self._skipped.set(n_skipped)
