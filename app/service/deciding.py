"""Requests for decisions, and for classes of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.service.admission import Place
from app.service.decisions import Content, Decision, DecisionQuestion, Decisions, decision_of, rendered
from app.service.errors import ServiceError
from app.service.prompts import TextPrompt
from app.telemetry.request import current

if TYPE_CHECKING:
    from app.service.service import Service


async def decide(
    service: Service,
    state: Content,
    questions: Sequence[DecisionQuestion],
    *,
    place: Place,
    field: str = "state",
) -> Decisions:
    """Answer questions about a state, each with probabilities of its options.

    Args:
        service: The service.
        state: The text or JSON that all questions are about. It is prefilled once.
        questions: At least one.
        place: Of the request.
        field: Name of the state in the request, for error messages.

    Raises:
        ServiceError: No question can be answered.
    """
    model, record = service.model, current()
    record.operation, record.model = "decision", model.name
    service.check_permission(place.client, TextPrompt(field=field))  # questions have no context
    with record.phase("prepare"):
        prepared = await service.threads.run(len(rendered(state)), model.questions.prepare, state, questions)
    n_tokens = prepared.n_tokens
    place.prepared(n_tokens)
    record.n_input = n_tokens
    service.rates.spend(place.client, n_tokens)
    asked = prepared.questions
    scored = await model.score(prepared.prompt, list(asked.values()), place.client)
    answers: dict[int, Decision | ServiceError] = dict(prepared.failures)
    answers |= zip(asked, map(decision_of, scored.logprobs), strict=True)
    return Decisions(model.name, [answers[i] for i in sorted(answers)], n_tokens, scored.n_cached)
