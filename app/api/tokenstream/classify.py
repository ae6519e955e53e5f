"""``POST /classify``: classes of texts, with probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from app.api.http.admission import place_of
from app.api.http.body import read_json
from app.api.http.choices import LabelMass
from app.api.http.fields import STRICT, ModelName
from app.api.http.waiting import while_connected
from app.config.contexts import ChoiceList, Choices, described
from app.service import MOST_QUESTIONS, Decision, Service, classify

_Text = Annotated[str, Field(min_length=1)]


class ClassifyRequest(BaseModel):
    """A text or several, and a context with choices, or choices."""

    model_config = STRICT

    query: Annotated[_Text | None, Field(description="The text.")] = None
    queries: Annotated[
        list[_Text] | None,
        Field(min_length=1, max_length=MOST_QUESTIONS, description="Several texts, instead of `query`."),
    ] = None
    context: Annotated[str | None, Field(description="A context with choices. Default: CONTEXT_TYPE.")] = None
    choices: Annotated[
        Choices | None,
        BeforeValidator(described, json_schema_input_type=ChoiceList | Choices | None),
        Field(description="Names, or descriptions by name, instead of `context`."),
    ] = None

    model: ModelName = None

    @model_validator(mode="after")
    def _has_one_source(self) -> ClassifyRequest:
        if self.query is None and self.queries is None:
            raise ValueError("query: is required, or queries instead")
        if self.query is not None and self.queries is not None:
            raise ValueError("queries: cannot be combined with query")
        if self.context is not None and self.choices is not None:
            raise ValueError("choices: cannot be combined with context")
        return self


class Class(TypedDict):
    """The most probable choice."""

    label: str
    probabilities: Annotated[dict[str, float], Field(description="Of each choice. Their sum is 1.")]
    label_mass: LabelMass


class ClassifyUsage(TypedDict):
    """Tokens of the request: the context once, and each text."""

    input_tokens: int
    cached_tokens: Annotated[int, Field(description="From the prefix cache.")]


class ClassReply(Class):
    """The class of `query`."""

    model: str
    usage: ClassifyUsage


class ClassesReply(TypedDict):
    """The classes of `queries`, in their order."""

    results: list[Class]
    model: str
    usage: ClassifyUsage


async def classify_texts(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_json(request, ClassifyRequest)
    queries = [body.query] if body.query is not None else body.queries or []
    work = classify(
        service,
        queries,
        place=place_of(request),
        model=body.model,
        context=body.context,
        choices=body.choices,
        field="queries" if body.query is None else "query",
    )
    names, decisions = await while_connected(request, work)
    usage: ClassifyUsage = {"input_tokens": decisions.n_input, "cached_tokens": decisions.n_cached}
    results = [_class(names, answer) for answer in decisions.answers if isinstance(answer, Decision)]
    if body.query is None:
        classes: ClassesReply = {"results": results, "model": decisions.model, "usage": usage}
        return JSONResponse(classes)
    [only] = results
    reply: ClassReply = {**only, "model": decisions.model, "usage": usage}
    return JSONResponse(reply)


def _class(names: Sequence[str], decision: Decision) -> Class:
    return {
        "label": names[decision.best],
        "probabilities": dict(zip(names, decision.probabilities, strict=True)),
        "label_mass": decision.label_mass,
    }
