"""Requests for decisions, and for classes of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from app.config.contexts import Context
from app.service.admission import Place
from app.service.clients import check_model, check_prompt
from app.service.errors import BadRequest, ServiceError
from app.service.preparing.decisions import (
    Content,
    Decision,
    DecisionQuestion,
    Decisions,
    decision_of,
    rendered,
)
from app.service.preparing.prompts import ChatPrompt, Prompt, TextPrompt
from app.service.preparing.questions import PreparedQuestions
from app.telemetry.request import current

if TYPE_CHECKING:
    from app.service.model.model import Model
    from app.service.service import Service


async def decide(
    service: Service,
    state: Content,
    questions: Sequence[DecisionQuestion],
    *,
    place: Place,
    model: str | None = None,
    field: str = "state",
) -> Decisions:
    """Answer questions about a state, each with probabilities of its options.

    Args:
        service: The service.
        state: The text or JSON that all questions are about. It is prefilled once.
        questions: At least one.
        place: Of the request.
        model: Name of the model. None: the default.
        field: Name of the state in the request, for error messages.

    Raises:
        ServiceError: No question can be answered.
    """
    # Questions have no context.
    used, adapter = await _permitted_model(service, TextPrompt(field=field, model=model), place, "decision")
    prepare = partial(used.questions.prepare, state, questions)
    return await _answer(service, used, adapter, prepare, len(rendered(state)), place)


async def classify(
    service: Service,
    queries: Sequence[str],
    *,
    place: Place,
    model: str | None = None,
    context: str | None = None,
    choices: Mapping[str, str] | None = None,
    field: str = "queries",
) -> tuple[Sequence[str], Decisions]:
    """Classify texts, each with probabilities of the choices of a context.

    Args:
        service: The service.
        queries: At least one.
        place: Of the request.
        model: Name of the model. None: that of the context, else the default.
        context: Name of a context with choices. None: the default one.
        choices: Names with descriptions, instead of a context.
        field: Name of the queries in the request, for error messages.

    Returns:
        The names of the choices, and the decisions about them.

    Raises:
        ServiceError: The context has no choices, or a text cannot be classified.
    """
    if choices is None:
        prompt = ChatPrompt((), context, model=model)
        used, adapter = await _permitted_model(service, prompt, place, "classification")
        of_queries = used.preparation.context_of(prompt)
        assert of_queries is not None
        if of_queries.choices is None:
            raise _without_choices(service, context)
    else:
        text = TextPrompt(field="choices", model=model)
        used, adapter = await _permitted_model(service, text, place, "classification")
        names = ", ".join(choices)
        of_queries = Context(prompt=f"Classify the text. Answer with one of: {names}.", choices=dict(choices))
    assert of_queries.choices is not None
    prepare = partial(used.questions.prepare_queries, queries, of_queries, field)
    decisions = await _answer(service, used, adapter, prepare, sum(map(len, queries)), place)
    return tuple(of_queries.choices), decisions


async def _permitted_model(
    service: Service, prompt: Prompt, place: Place, operation: str
) -> tuple[Model, str]:
    """The model of a request, and its adapter; ``prompt``: its model and context."""
    entry, record = service.entry_of(prompt), current()
    record.operation, record.model = operation, entry.name
    check_model(place.client, entry.name)
    check_prompt(place.client, prompt, service.settings.context_type)
    adapter = service.adapter_of(prompt, entry)
    return await service.use(entry, place), adapter


def _without_choices(service: Service, context: str | None) -> BadRequest:
    name = service.settings.context_type if context is None else context
    others = ", ".join(n for n, one in service.contexts.items() if one.choices) or "none"
    return BadRequest(
        f"context {name!r} has no choices; contexts with choices: {others}. Or send choices", field="context"
    )


async def _answer(
    service: Service,
    model: Model,
    adapter: str,
    prepare: Callable[[], PreparedQuestions],
    n_characters: int,
    place: Place,
) -> Decisions:
    """Prepare questions and answer them."""
    record = current()
    with record.phase("prepare"):
        prepared = await service.threads.run(n_characters, prepare)
    n_tokens = prepared.n_tokens
    place.prepared(n_tokens)
    record.n_input = n_tokens
    service.rates.spend(place.client, n_tokens)
    asked = prepared.questions
    scored = await model.score(prepared.prompt, list(asked.values()), place.client, adapter=adapter)
    answers: dict[int, Decision | ServiceError] = dict(prepared.failures)
    answers |= zip(asked, map(decision_of, scored.logprobs), strict=True)
    return Decisions(
        model.name,
        [answers[i] for i in sorted(answers)],
        n_tokens,
        scored.n_cached,
        max(len(prepared.prompt) - scored.n_cached, 0),
    )
