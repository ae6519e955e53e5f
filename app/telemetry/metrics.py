"""Metrics in the Prometheus format."""

from __future__ import annotations

from collections.abc import Sequence
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

from app.telemetry.engine_metrics import EngineFigures, EngineMetrics
from app.telemetry.latest import LatestRequests

if TYPE_CHECKING:
    from app.engine.report import StepReport
    from app.telemetry.request import AnswerFigures, RequestRecord

# Seconds. An answer takes 0.1 s to minutes.
_LOOKUP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_ANSWER_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_QUEUE_BUCKETS = (0.005, 0.01, 0.025, *_ANSWER_BUCKETS)
# Values of finished_reason, as in vLLM.
_REASONS = {
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "cancelled": "abort",
    "error": "error",
}


class Metrics:
    """Metrics of one process, all with the label ``instance``.

    With several models, those of engines and answers have the label ``model`` too. Names without a
    counterpart in the seeds are those of vLLM without its prefix, if it has the metric.

    Attributes:
        engines: Metrics of all engines.
        latest: The last requests of clients.
    """

    def __init__(self, instance: str, models: Sequence[str] = ()) -> None:
        """``models``: names of the models, if there are several."""
        self._instance = instance
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.engines = EngineMetrics(instance, models)
        self.registry.register(self.engines)
        engines = self.engines.engines
        self.models = {name: ModelMetrics(self, name, figures) for name, figures in engines.items()}
        self._has_models = bool(models)
        self.latest = LatestRequests()
        self._add_requests()
        self._add_knowledge()

    def _add_requests(self) -> None:
        self._response = self._histogram_of_model(
            "inference_response_duration",
            "Seconds from a request to the end of its answer, including tokenization.",
            _ANSWER_BUCKETS,
        )
        self._first_token = self._histogram_of_model(
            "time_to_first_token_duration", "Seconds from a request to the first token.", _ANSWER_BUCKETS
        )
        self._queue = self._histogram_of_model(
            "request_queue_time_seconds", "Time of an answer in the queue.", _QUEUE_BUCKETS
        )
        self._prefill = self._histogram_of_model(
            "request_prefill_time_seconds", "Time from a slot to the first token.", _QUEUE_BUCKETS
        )
        self._decode = self._histogram_of_model(
            "request_decode_time_seconds", "Time from the first token to the last.", _QUEUE_BUCKETS
        )
        self._requests = self._counter(
            "http_requests", "Requests by result.", "method", "route", "status", "key", "model"
        )
        self._rejected = self._counter("rejected_requests", "Rejected and failed requests.", "reason")
        of_model = ("model",) if self._has_models else ()
        self._finished = self._counter("request_success", "Ended answers.", *of_model, "finished_reason")

    def _add_knowledge(self) -> None:
        self._lookup = self._histogram(
            "embedding_duration",
            "Seconds to embed a question and search the knowledge base.",
            _LOOKUP_BUCKETS,
        )
        self._documents = self._gauge("knowledge_documents", "Indexed documents.")
        self._chunks = self._gauge("knowledge_chunks", "Indexed passages.")
        self._skipped = self._gauge("knowledge_skipped_files", "Unreadable files.")
        self._indexed_documents = self._counter("indexed_documents", "Documents indexed since the start.")
        self._indexed_chunks = self._counter("indexed_chunks", "Passages indexed since the start.")
        self._skipped_files = self._counter(
            "skipped_files", "Skipped files since the start, repetitions included."
        )

    def _histogram(self, name: str, doc: str, buckets: tuple[float, ...]) -> Histogram:
        metric = Histogram(name, doc, ["instance"], buckets=buckets, registry=self.registry)
        return metric.labels(self._instance)

    def _histogram_of_model(self, name: str, doc: str, buckets: tuple[float, ...]) -> Histogram:
        labels = ["instance", "model"] if self._has_models else ["instance"]
        metric = Histogram(name, doc, labels, buckets=buckets, registry=self.registry)
        for model in self.models:
            metric.labels(*self._labels(model))
        return metric

    def _gauge(self, name: str, doc: str) -> Gauge:
        return Gauge(name, doc, ["instance"], registry=self.registry).labels(self._instance)

    def _counter(self, name: str, doc: str, *labels: str) -> Counter:
        metric = Counter(name, doc, ["instance", *labels], registry=self.registry)
        return metric if labels else metric.labels(self._instance)

    def _labels(self, model: str) -> tuple[str, ...]:
        return (self._instance, model) if self._has_models else (self._instance,)

    def on_first_token(self, model: str, seconds: float) -> None:
        """Record the TTFT of a request."""
        self._first_token.labels(*self._labels(model)).observe(seconds)

    def on_answer(self, model: str, seconds: float) -> None:
        """Record the duration of a complete answer."""
        self._response.labels(*self._labels(model)).observe(seconds)

    def on_request(self, record: RequestRecord) -> None:
        """Record a request at its end."""
        self._requests.labels(
            self._instance,
            record.method,
            record.route,
            str(record.status),
            record.key or "",
            record.model or "",
        ).inc()
        if record.error is not None:
            self._rejected.labels(self._instance, record.error).inc()
        for answer in record.answers:
            self._on_end(self._labels(record.model or ""), answer)

    def _on_end(self, labels: Sequence[str], answer: AnswerFigures) -> None:
        self._finished.labels(*labels, _REASONS[answer.outcome]).inc()
        if answer.admitted_at is None:
            return
        self._queue.labels(*labels).observe(answer.admitted_at - answer.submitted_at)
        if answer.first_token_at is not None and answer.last_token_at is not None:
            self._prefill.labels(*labels).observe(answer.first_token_at - answer.admitted_at)
            self._decode.labels(*labels).observe(answer.last_token_at - answer.first_token_at)

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


class ModelMetrics:
    """Metrics of one model.

    Attributes:
        engine: Figures of its engine.
    """

    def __init__(self, metrics: Metrics, name: str, engine: EngineFigures) -> None:
        self._metrics = metrics
        self._name = name
        self.engine = engine

    def on_step(self, report: StepReport) -> None:
        """Record an engine step."""
        self.engine.on_step(report)

    def on_first_token(self, seconds: float) -> None:
        """Record the TTFT of a request."""
        self._metrics.on_first_token(self._name, seconds)

    def on_answer(self, seconds: float) -> None:
        """Record the duration of a complete answer."""
        self._metrics.on_answer(self._name, seconds)
