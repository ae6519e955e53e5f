"""``tokenstream classify``: classes of texts on the terminal, without a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from pydantic import ValidationError

from app.api.http.problems import validation_problem
from app.api.tokenstream.classify import ClassifyRequest
from app.cli.generate import ArgumentError
from app.config.settings import Settings
from app.engine.client import LOCAL
from app.service import Decision, Service
from app.service import classify as classify_queries
from app.service.start import Start

_BATCH = 64  # texts of one request


async def classify(
    settings: Settings, texts: Sequence[str], context: str | None, choices: str | None, *, as_json: bool
) -> None:
    """Print the class of each text.

    Args:
        settings: The model.
        texts: The texts. None: each line of standard input is a text.
        context: Name of a context with choices. None: CONTEXT_TYPE.
        choices: Names separated by commas, instead of a context.
        as_json: Whether to print objects with all probabilities, one per line.

    Raises:
        UserError: The model cannot be loaded, or a text cannot be classified.
    """
    names = None if choices is None else [name.strip() for name in choices.split(",")]
    given = iter(texts) if texts else _lines()
    first = _request(["-"], context, names)  # wrong arguments end the command before the model is loaded
    start = Start(settings)
    service = start.service
    try:
        await start.load(
            warm=({context or settings.context_type} & service.contexts.keys()) if not names else ()
        )
        while batch := list(islice(given, _BATCH)):
            await _print(service, first.model_copy(update={"queries": batch}), as_json=as_json)
    finally:
        await service.close()


def _lines() -> Iterator[str]:
    for line in sys.stdin:
        if text := line.strip():
            yield text


def _request(queries: list[str], context: str | None, choices: Iterable[str] | None) -> ClassifyRequest:
    fields = {"queries": queries, "context": context, "choices": choices}
    try:
        return ClassifyRequest.model_validate({name: value for name, value in fields.items() if value})
    except ValidationError as error:
        raise ArgumentError(validation_problem(error).message) from None


async def _print(service: Service, request: ClassifyRequest, *, as_json: bool) -> None:
    assert request.queries is not None
    with service.admission.enter(LOCAL, 0) as place:
        names, decisions = await classify_queries(
            service, request.queries, place=place, context=request.context, choices=request.choices
        )
    for text, answer in zip(request.queries, decisions.answers, strict=True):
        if not isinstance(answer, Decision):
            raise answer
        label = names[answer.best]
        if as_json:
            probabilities = dict(zip(names, answer.probabilities, strict=True))
            found = {
                "text": text,
                "label": label,
                "probabilities": probabilities,
                "label_mass": answer.label_mass,
            }
            print(json.dumps(found, ensure_ascii=False), flush=True)
        else:
            print(f"{label}\t{answer.confidence:.2f}\t{text}", flush=True)
