"""What Prometheus scrapes."""

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

# Seconds. A token takes 3 ms (a small model, alone) to seconds (a large one, many at once) on CPUs;
# an answer from a tenth of a second to minutes.
_TOKEN_BUCKETS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_LOOKUP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_ANSWER_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)


class Metrics:
    """One process's metrics, all with the label ``instance``."""

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
            "Seconds of the step that made a token, for each token.",
            _TOKEN_BUCKETS,
        )
        self._response = histogram(
            "inference_response_duration",
            "Seconds from a request to the end of its answer, tokenization included.",
            _ANSWER_BUCKETS,
        )
        self._first_token = histogram(
            "time_to_first_token_duration", "Seconds from a request to the first token.", _ANSWER_BUCKETS
        )
        self._running = gauge("running_requests", "Requests that are being prefilled or decoded.")
        self._waiting = gauge("waiting_requests", "Requests that wait for a free sequence.")
        self._prompt = counter("prompt_tokens", "Prompt tokens that were prefilled.")
        self._cached = counter("cached_prompt_tokens", "Prompt tokens that came from the prefix cache.")
        self._generated = counter("generated_tokens", "Tokens that were generated.")
        self._drafted = counter("draft_tokens", "Tokens that were guessed ahead and verified.")
        self._accepted = counter("accepted_draft_tokens", "Guessed tokens that were right.")
        self._cache_bytes = gauge("prefix_cache_bytes", "RAM that saved prefixes take.")
        self._cache_states = gauge("prefix_cache_states", "Prefixes that are saved.")
        self._evicted = gauge("prefix_cache_evictions", "Prefixes that made room for others so far.")

        self._lookup = histogram(
            "embedding_duration",
            "Seconds to embed a question and look it up in the knowledge base.",
            _LOOKUP_BUCKETS,
        )
        self._documents = gauge("knowledge_documents", "Documents that are indexed.")
        self._chunks = gauge("knowledge_chunks", "Passages that are indexed.")
        self._skipped = gauge("knowledge_skipped_files", "Files that cannot be read.")
        self._indexed_documents = counter("indexed_documents", "Documents that were indexed since the start.")
        self._indexed_chunks = counter("indexed_chunks", "Passages that were embedded and indexed.")
        self._skipped_files = counter("skipped_files", "Times that a file was skipped.")

    def on_step(self, report: StepReport) -> None:
        """Take the report of one step of the engine."""
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
        """Note how long a request waited for its first token."""
        self._first_token.observe(seconds)

    def on_answer(self, seconds: float) -> None:
        """Note how long a whole answer took."""
        self._response.observe(seconds)

    def on_lookup(self, seconds: float) -> None:
        """Note how long a question took to be embedded and looked up."""
        self._lookup.observe(seconds)

    def on_indexed(self, n_chunks: int, problem: str | None) -> None:
        """Note a file that was indexed, or skipped for a problem."""
        if problem is None:
            self._indexed_documents.inc()
            self._indexed_chunks.inc(n_chunks)
        else:
            self._skipped_files.inc()

    def on_index(self, n_documents: int, n_chunks: int, n_skipped: int) -> None:
        """Note what the index holds."""
        self._documents.set(n_documents)
        self._chunks.set(n_chunks)
        self._skipped.set(n_skipped)
