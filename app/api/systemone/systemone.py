"""``POST /v1/systemone``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import NotRequired, TypedDict

from app.api.http.admission import place_of
from app.api.http.body import read_json
from app.api.http.choices import LabelMass
from app.api.http.fields import STRICT, ModelName
from app.api.http.problems import invalid
from app.api.http.waiting import while_connected
from app.service import (
    MOST_OPTIONS,
    MOST_QUESTIONS,
    Content,
    Decision,
    DecisionQuestion,
    Option,
    Service,
    ServiceError,
    decide,
)


class NoulCriteria(BaseModel):
    """Descriptions of the two answers."""

    model_config = STRICT

    true: Content | None = None
    false: Content | None = None


class NoulQuestion(BaseModel):
    """A yes/no question."""

    model_config = STRICT

    type: Literal["noul"]
    instructions: Content | None = None
    criteria: NoulCriteria | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> NoulQuestion:
        if self.instructions is None and not (self.criteria and (self.criteria.true or self.criteria.false)):
            raise ValueError("instructions: are required, or criteria with true or false")
        return self

    def asked(self, field: str) -> DecisionQuestion:
        yes, no = (self.criteria.true, self.criteria.false) if self.criteria else (None, None)
        options = (Option("Yes", yes), Option("No", no))
        return DecisionQuestion(self.instructions, options, field, answers_by_name=True)

    def answer(self, decision: Decision) -> NoulAnswer:
        return {"type": "noul", "noul": decision.probabilities[0], "label_mass": decision.label_mass}


class ChoiceQuestion(BaseModel):
    """A question that selects one of several names."""

    model_config = STRICT

    type: Literal["choice"]
    instructions: Content | None = None
    criteria: Annotated[
        dict[Annotated[str, Field(min_length=1)], Content | None],
        Field(min_length=1, max_length=MOST_OPTIONS, description="Descriptions by name."),
    ]

    def asked(self, field: str) -> DecisionQuestion:
        options = tuple(Option(name, described) for name, described in self.criteria.items())
        return DecisionQuestion(self.instructions, options, field)

    def answer(self, decision: Decision) -> ChoiceAnswer:
        names = list(self.criteria)
        return {
            "type": "choice",
            "choice": names[decision.best],
            "confidence": decision.confidence,
            "probabilities": dict(zip(names, decision.probabilities, strict=True)),
            "label_mass": decision.label_mass,
        }


class ScoreQuestion(BaseModel):
    """A question that rates the state on a scale from 0."""

    model_config = STRICT

    type: Literal["score"]
    instructions: Content | None = None
    criteria: Annotated[
        list[Content],
        Field(min_length=1, max_length=MOST_OPTIONS, description="Descriptions of the levels from 0."),
    ]

    def asked(self, field: str) -> DecisionQuestion:
        options = tuple(Option(str(level), text) for level, text in enumerate(self.criteria))
        return DecisionQuestion(self.instructions, options, field)

    def answer(self, decision: Decision) -> ScoreAnswer:
        levels = enumerate(decision.probabilities)
        return {
            "type": "score",
            "score": sum(level * probability for level, probability in levels),
            "confidence": decision.confidence,
            "legend": {str(level): text for level, text in enumerate(self.criteria)},
            "probabilities": {str(level): p for level, p in enumerate(decision.probabilities)},
            "label_mass": decision.label_mass,
        }


Question = Annotated[NoulQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]


class SystemOneRequest(BaseModel):
    """A state and questions about it. Images are not supported."""

    model_config = STRICT

    state: Annotated[Content, Field(description="Text or JSON that all questions are about.")]
    questions: Annotated[
        dict[str, Question], Field(min_length=1, max_length=MOST_QUESTIONS, description="By name.")
    ]
    model: ModelName = None


class NoulAnswer(TypedDict):
    """The probability of yes."""

    type: Literal["noul"]
    noul: float
    label_mass: LabelMass


class ChoiceAnswer(TypedDict):
    """The most probable name."""

    type: Literal["choice"]
    choice: str
    confidence: Annotated[float, Field(description="Its probability.")]
    probabilities: dict[str, float]
    label_mass: LabelMass


class ScoreAnswer(TypedDict):
    """The expected level."""

    type: Literal["score"]
    score: float
    confidence: Annotated[float, Field(description="The highest probability.")]
    legend: dict[str, Content]
    probabilities: dict[str, float]
    label_mass: LabelMass


class ErrorAnswer(TypedDict):
    """A question that cannot be answered."""

    type: Literal["error"]
    message: str


class SystemOneUsage(TypedDict):
    """Tokens of the request."""

    input_tokens: int
    output_tokens: int
    cached_tokens: NotRequired[Annotated[int, Field(description="From the prefix cache.")]]


class SystemOneReply(TypedDict):
    """The answers by the names of their questions."""

    model: str
    answers: dict[str, NoulAnswer | ChoiceAnswer | ScoreAnswer | ErrorAnswer]
    usage: SystemOneUsage


async def systemone(request: Request) -> Response:
    service: Service = request.app.state.service
    if request.headers.get("content-type", "").startswith("multipart/"):  # clients send images so
        raise invalid("images are not supported", "assets")
    body = await read_json(request, SystemOneRequest)
    asked = [question.asked(f"questions.{name}") for name, question in body.questions.items()]
    work = decide(service, body.state, asked, place=place_of(request), model=body.model)
    made = await while_connected(request, work)
    answers: dict[str, NoulAnswer | ChoiceAnswer | ScoreAnswer | ErrorAnswer] = {}
    for (name, question), decision in zip(body.questions.items(), made.answers, strict=True):
        if isinstance(decision, ServiceError):
            answers[name] = {"type": "error", "message": str(decision)}
        else:
            answers[name] = question.answer(decision)
    usage: SystemOneUsage = {
        "input_tokens": made.n_input,
        "output_tokens": 0,
        "cached_tokens": made.n_cached,
    }
    reply: SystemOneReply = {"model": made.model, "answers": answers, "usage": usage}
    return JSONResponse(reply)
