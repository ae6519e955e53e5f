"""Traces of requests in OpenTelemetry's format, sent to a collector by OTLP over HTTP.

The packages are installed only for OTLP_ENDPOINT, so they are imported in functions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.config.settings import SettingsError
from app.machine.installation import install_with
from app.telemetry.request import AnswerFigures, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

# Names of finish reasons in the GenAI semantic conventions.
_FINISH_REASONS = {"eos_token": "stop", "stop_sequence": "stop"}


@dataclass(frozen=True, slots=True)
class _Part:
    """A span below a request: begin and end by ``time.perf_counter``, attributes, and events by time."""

    name: str
    begin: float
    end: float
    attributes: Mapping[str, Any]
    events: Mapping[str, float] = field(default_factory=dict)


class Tracing:
    """Makes a span per request, and the spans of its parts at its end. Engine steps do no work for it."""

    def __init__(self, endpoint: str, instance: str) -> None:
        """Start the exporter, which has its own thread.

        Args:
            endpoint: URL of the collector, without path.
            instance: Value of ``service.instance.id``.

        Raises:
            SettingsError: The packages are not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"OTLP_ENDPOINT={endpoint}: the package {error.name} is not installed; run "
                f"`{install_with('OTLP_ENDPOINT', endpoint)}`"
            ) from None
        resource = Resource.create({"service.name": "tokenstream", "service.instance.id": instance})
        resource = resource.merge(OTELResourceDetector().detect())  # OTEL_SERVICE_NAME takes precedence
        self._provider: TracerProvider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer: Tracer = self._provider.get_tracer("tokenstream")

    def begin(self, record: RequestRecord, headers: Mapping[str, str]) -> Span:
        """Start the span of a request, as a child of the span in its W3C headers."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract(headers)
        return self._tracer.start_span(record.method, context, SpanKind.SERVER)

    def end(self, span: Span, record: RequestRecord) -> None:
        """End the span of a request, with the spans of its parts below."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        if span.is_recording():
            now, clock = time.time_ns(), time.perf_counter()

            def at(seconds: float) -> int:
                return now - int((clock - seconds) * 1e9)

            span.update_name(f"{record.method} {record.route}")
            span.set_attributes(_attributes(record))
            if record.status is not None and (record.status >= 500 or "error" in record.outcomes):
                span.set_status(Status(StatusCode.ERROR, record.error))
            context = set_span_in_context(span)
            for part in _parts(record, clock):
                child = self._tracer.start_span(
                    part.name, context, attributes=part.attributes, start_time=at(part.begin)
                )
                for name, moment in part.events.items():
                    child.add_event(name, timestamp=at(moment))
                child.end(at(part.end))
        span.end()

    def close(self) -> None:
        """Send the remaining spans; blocking."""
        self._provider.shutdown()


def trace_id(span: Span) -> str:
    """The id of the span's trace, as in W3C headers."""
    return f"{span.get_span_context().trace_id:032x}"


def _attributes(record: RequestRecord) -> dict[str, Any]:
    """Attributes of a request by the semantic conventions of HTTP and of GenAI."""
    values: dict[str, Any] = {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "error.type": record.error,
        "tokenstream.request.id": record.id,
        "tokenstream.key": record.key,
        "tokenstream.context": record.context,
    }
    if record.operation is not None:
        values |= {
            "gen_ai.operation.name": record.operation,
            "gen_ai.provider.name": "tokenstream",
            "gen_ai.request.model": record.model,
            "gen_ai.response.model": record.model,
            "gen_ai.usage.input_tokens": record.n_prompt,
        }
    if record.answers:
        reasons = [_FINISH_REASONS.get(outcome, outcome) for outcome in record.outcomes]
        values |= {
            "gen_ai.usage.output_tokens": sum(answer.n_generated for answer in record.answers),
            "gen_ai.usage.cache_read.input_tokens": sum(answer.n_cached for answer in record.answers),
            "gen_ai.response.finish_reasons": reasons,
            "gen_ai.response.time_to_first_chunk": record.time_to_first_token,
        }
        values |= {f"gen_ai.request.{name}": value for name, value in record.params.items()}
    return {name: value for name, value in values.items() if value is not None}


def _parts(record: RequestRecord, now: float) -> Iterator[_Part]:
    for phase in record.phases:
        facts = {f"tokenstream.{name}": value for name, value in phase.facts.items()}
        yield _Part(phase.name, phase.begin, phase.end, facts)
    for index, answer in enumerate(record.answers):
        yield from _parts_of(answer, index, now)


def _parts_of(answer: AnswerFigures, index: int, now: float) -> Iterator[_Part]:
    """Queue, prefill and decode of an answer, as far as it came."""
    choice = {"tokenstream.choice": index}
    admitted, first, last = answer.admitted_at, answer.first_token_at, answer.last_token_at
    yield _Part("queue", answer.submitted_at, now if admitted is None else admitted, choice)
    if admitted is None:
        return
    facts: dict[str, Any] = choice | {
        "tokenstream.prompt_tokens": answer.n_prompt,
        "tokenstream.cached_tokens": answer.n_cached,
    }
    events: dict[str, float] = {}
    if answer.cache_tier is not None:
        facts["tokenstream.cache_tier"] = answer.cache_tier
        events["prefix restored"] = admitted
    yield _Part("prefill", admitted, now if first is None else first, facts, events)
    if first is None or last is None:
        return
    facts = choice | {"tokenstream.generated_tokens": answer.n_generated}
    yield _Part("decode", first, last, facts, {"first token": first, answer.outcome: last})
