"""The record of one HTTP request. Each floor adds its part; the record is reported once, at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol


class AnswerFigures(Protocol):
    """Figures of one answer. Times are those of ``time.perf_counter``; None: not reached."""

    @property
    def n_prompt(self) -> int: ...

    @property
    def n_cached(self) -> int: ...

    @property
    def cache_tier(self) -> str | None: ...

    @property
    def n_generated(self) -> int: ...

    @property
    def submitted_at(self) -> float: ...

    @property
    def admitted_at(self) -> float | None: ...

    @property
    def first_token_at(self) -> float | None: ...

    @property
    def last_token_at(self) -> float | None: ...

    @property
    def tokens_per_second(self) -> float: ...

    @property
    def outcome(self) -> str: ...

    @property
    def logged_text(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a request, with its begin and end by ``time.perf_counter``."""

    name: str
    begin: float
    end: float
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class RequestRecord:
    """Facts of one request.

    Attributes:
        id: ``X-Request-ID``.
        method: HTTP method.
        logs_content: Whether prompt and answer are logged.
        started_at: Arrival, by ``time.perf_counter``.
        route: Path of the route, with the names of its parameters.
        status: HTTP status; 499 if the client disconnected before a response.
        error: Kind of the problem, if the request was rejected or failed.
        key: Name of the API key.
        model: Name of the model.
        context: Name of the context.
        operation: Operation by the GenAI semantic conventions.
        params: Sampling parameters of the request.
        prompt: The prompt's text, if it is logged.
        n_input: Tokens of a request without answers, such as an embedding request.
        answers: Figures of each answer.
        phases: Parts before the engine.
    """

    id: str
    method: str
    logs_content: bool = False
    started_at: float = field(default_factory=time.perf_counter)
    route: str = ""
    status: int | None = None
    error: str | None = None
    key: str | None = None
    model: str | None = None
    context: str | None = None
    operation: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    n_input: int | None = None
    answers: list[AnswerFigures] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[dict[str, Any]]:
        """Record the duration of a block as a phase. Yields its facts, to be filled."""
        begin, facts = time.perf_counter(), dict[str, Any]()
        try:
            yield facts
        finally:
            self.phases.append(Phase(name, begin, time.perf_counter(), facts))

    @property
    def queue_seconds(self) -> float | None:
        """Longest time between submission and admission of an answer."""
        waits = [a.admitted_at - a.submitted_at for a in self.answers if a.admitted_at is not None]
        return max(waits, default=None)

    @property
    def time_to_first_token(self) -> float | None:
        first = [a.first_token_at for a in self.answers if a.first_token_at is not None]
        return min(first) - self.started_at if first else None

    @property
    def n_prompt(self) -> int | None:
        """Prompt tokens of all answers, or tokens to embed."""
        return sum(a.n_prompt for a in self.answers) if self.answers else self.n_input

    @property
    def outcomes(self) -> list[str]:
        """Outcomes of the answers without repetition."""
        return list(dict.fromkeys(a.outcome for a in self.answers))

    def fields(self) -> dict[str, Any]:
        """Fields of the log line, without those that do not apply."""
        fields: dict[str, Any] = {
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "seconds": round(time.perf_counter() - self.started_at, 4),
            "key": self.key,
            "model": self.model,
            "context": self.context,
            "prompt_tokens": self.n_prompt,
            "error": self.error,
        }
        if self.answers:
            ttft, queue = self.time_to_first_token, self.queue_seconds
            fields |= {
                "cached_tokens": sum(a.n_cached for a in self.answers),
                "generated_tokens": sum(a.n_generated for a in self.answers),
                "queue_seconds": queue if queue is None else round(queue, 4),
                "time_to_first_token": ttft if ttft is None else round(ttft, 4),
                "tokens_per_second": round(sum(a.tokens_per_second for a in self.answers), 2),
                "finish_reason": ",".join(self.outcomes),
            }
        if self.logs_content:
            fields["prompt"] = self.prompt
            fields["answer"] = "\n".join(a.logged_text or "" for a in self.answers) or None
        return {name: value for name, value in fields.items() if value is not None}


_current: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)


def current() -> RequestRecord:
    """The record of the request of this task; outside of a request, a new one that is not reported."""
    return _current.get() or RequestRecord(id="", method="")


def begin(record: RequestRecord) -> None:
    """Make a record the current one until the end of the task."""
    _current.set(record)
