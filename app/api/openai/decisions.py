"""``POST /v1/decisions``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from app.api.http.admission import place_of
from app.api.http.body import read_json
from app.api.http.fields import LENIENT, STRICT, ModelName
from app.api.http.waiting import while_connected
from app.service import (
    MOST_OPTIONS,
    MOST_QUESTIONS,
    Decision,
    DecisionQuestion,
    Option,
    Service,
    ServiceError,
    decide,
    rendered,
)

_Text = Annotated[str, StringConstraints(min_length=1)]


class TextPart(BaseModel):
    """A part of a content: text."""

    model_config = LENIENT

    type: Literal["input_text", "output_text"]
    text: str

    def shown(self) -> str:
        return self.text


class RefusalPart(BaseModel):
    """A part of a content: a refusal."""

    model_config = LENIENT

    type: Literal["refusal"]
    refusal: str

    def shown(self) -> str:
        return self.refusal


class JSONPart(BaseModel):
    """A part of a content: JSON."""

    model_config = LENIENT

    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]

    def shown(self) -> str:
        return rendered(self.data)


def _as_parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


_PartList = Annotated[
    list[Annotated[TextPart | RefusalPart | JSONPart, Field(discriminator="type")]], Field(min_length=1)
]
Parts = Annotated[_PartList, BeforeValidator(_as_parts, json_schema_input_type=str | _PartList)]


def _shown(content: Sequence[TextPart | RefusalPart | JSONPart]) -> str:
    return "\n".join(part.shown() for part in content)


class InputMessage(BaseModel):
    """A message of the input."""

    model_config = LENIENT

    type: Literal["message"] = "message"
    role: Literal["user", "developer", "system", "assistant"]
    content: Parts

    def shown(self) -> str:
        return f"{self.role}: {_shown(self.content)}"


class InputCall(BaseModel):
    """A call of a function or a custom tool."""

    model_config = LENIENT

    type: Literal["function_call", "custom_tool_call"]
    call_id: str
    name: str
    arguments: str | None = None
    input: str | None = None

    def shown(self) -> str:
        return f"call {self.name}: {self.arguments or self.input or ''}"


class InputCallOutput(BaseModel):
    """The output of a call."""

    model_config = LENIENT

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Parts

    def shown(self) -> str:
        return f"output: {_shown(self.output)}"


class _Question(BaseModel):
    model_config = STRICT

    instructions: Parts
    name: str | None = None


class PredicateQuestion(_Question):
    """The probability that a statement is true."""

    type: Literal["predicate"]

    def asked(self, field: str) -> DecisionQuestion:
        options = (Option("Yes"), Option("No"))
        return DecisionQuestion(_shown(self.instructions), options, field, answers_by_name=True)

    def answer(self, decision: Decision) -> PredicateAnswer:
        return {
            "type": "predicate",
            "name": self.name,
            "probability": decision.probabilities[0],
            "label_mass": decision.label_mass,
        }


class ChoiceOption(BaseModel):
    """A value to choose."""

    model_config = STRICT

    value: _Text | bool
    description: str | None = None


class ChoiceQuestion(_Question):
    """One of several values."""

    type: Literal["choice"]
    choices: Annotated[list[ChoiceOption], Field(min_length=2, max_length=MOST_OPTIONS)]

    @model_validator(mode="after")
    def _has_unique_values(self) -> ChoiceQuestion:
        values = [(type(choice.value), choice.value) for choice in self.choices]
        for index, value in enumerate(values):
            if value in values[:index]:
                raise ValueError(f"choices: {value[1]!r} is there twice")
        return self

    def asked(self, field: str) -> DecisionQuestion:
        # A text and a boolean of the same name differ by their JSON.
        names = [
            c.value if isinstance(c.value, str) and c.value not in ("true", "false") else json.dumps(c.value)
            for c in self.choices
        ]
        options = tuple(Option(name, c.description) for name, c in zip(names, self.choices, strict=True))
        return DecisionQuestion(_shown(self.instructions), options, field)

    def answer(self, decision: Decision) -> ChoiceAnswer:
        values = [choice.value for choice in self.choices]
        return {
            "type": "choice",
            "name": self.name,
            "choice": values[decision.best],
            "confidence": decision.confidence,
            "probabilities": [
                {"value": value, "probability": probability}
                for value, probability in zip(values, decision.probabilities, strict=True)
            ],
            "label_mass": decision.label_mass,
        }


class ScoreLevel(BaseModel):
    """A level of a scale."""

    model_config = STRICT

    label: _Text
    description: str | None = None


class ScoreQuestion(_Question):
    """A rating on a scale from 0."""

    type: Literal["score"]
    levels: Annotated[list[ScoreLevel], Field(min_length=2, max_length=MOST_OPTIONS)]

    def asked(self, field: str) -> DecisionQuestion:
        options = tuple(Option(level.label, level.description) for level in self.levels)
        return DecisionQuestion(_shown(self.instructions), options, field)

    def answer(self, decision: Decision) -> ScoreAnswer:
        return {
            "type": "score",
            "name": self.name,
            "score": sum(value * p for value, p in enumerate(decision.probabilities)),
            "confidence": decision.confidence,
            "probabilities": [
                {"value": value, "label": level.label, "probability": decision.probabilities[value]}
                for value, level in enumerate(self.levels)
            ],
            "label_mass": decision.label_mass,
        }


def _kind(item: Any) -> str | None:
    """The type of an item of the input; messages may omit it."""
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return _KINDS.get(kind, kind) if isinstance(kind, str) else None


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


_KINDS = {"custom_tool_call": "function_call", "custom_tool_call_output": "function_call_output"}
_Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputCallOutput, Tag("function_call_output")],
    Discriminator(_kind),
]
_Items = Annotated[list[_Item], Field(min_length=1)]


class DecisionRequest(BaseModel):
    """An input and questions about it. Unknown fields are ignored."""

    model_config = LENIENT

    input: Annotated[
        _Items,
        BeforeValidator(_as_items, json_schema_input_type=str | _Items),
        Field(description="Text, or messages and calls with their outputs. Images are not supported."),
    ]
    questions: Annotated[
        list[Annotated[PredicateQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]],
        Field(min_length=1, max_length=MOST_QUESTIONS),
    ]
    model: ModelName = None

    @model_validator(mode="after")
    def _has_calls_of_outputs(self) -> DecisionRequest:
        calls: set[str] = set()
        for index, item in enumerate(self.input):
            if isinstance(item, InputCall):
                calls.add(item.call_id)
            elif isinstance(item, InputCallOutput) and item.call_id not in calls:
                raise ValueError(f"input.{index}.call_id: {item.call_id!r} is no call before it")
        return self

    def state(self) -> str:
        """The input as a text. A single message of a user is its content."""
        only = self.input[0]
        if len(self.input) == 1 and isinstance(only, InputMessage) and only.role == "user":
            return _shown(only.content)
        return "\n".join(item.shown() for item in self.input)


class PredicateAnswer(TypedDict):
    """The probability that a statement is true."""

    type: Literal["predicate"]
    name: str | None
    probability: float
    label_mass: float


class ChoiceProbability(TypedDict):
    """A value and its probability."""

    value: str | bool
    probability: float


class ChoiceAnswer(TypedDict):
    """The most probable value."""

    type: Literal["choice"]
    name: str | None
    choice: str | bool
    confidence: float
    probabilities: list[ChoiceProbability]
    label_mass: float


class LevelProbability(TypedDict):
    """A level and its probability."""

    value: int
    label: str
    probability: float


class ScoreAnswer(TypedDict):
    """The expected level."""

    type: Literal["score"]
    name: str | None
    score: float
    confidence: float
    probabilities: list[LevelProbability]
    label_mass: float


class RefusalAnswer(TypedDict):
    """A question that cannot be answered."""

    type: Literal["refusal"]
    name: str | None
    reason: str


class InputDetails(TypedDict):
    """Tokens from the prefix cache, and tokens of the input that it got."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(TypedDict):
    """Tokens of thoughts: none."""

    reasoning_tokens: int


class DecisionUsage(TypedDict):
    """Tokens of the request."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class DecisionReply(TypedDict):
    """The answers in the order of the questions."""

    model: str
    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer | RefusalAnswer]
    usage: DecisionUsage


async def decisions(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_json(request, DecisionRequest)
    asked = [question.asked(f"questions.{index}") for index, question in enumerate(body.questions)]
    work = decide(service, body.state(), asked, place=place_of(request), model=body.model, field="input")
    made = await while_connected(request, work)
    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer | RefusalAnswer] = []
    for question, decision in zip(body.questions, made.answers, strict=True):
        if isinstance(decision, ServiceError):
            answers.append({"type": "refusal", "name": question.name, "reason": str(decision)})
        else:
            answers.append(question.answer(decision))
    usage: DecisionUsage = {
        "input_tokens": made.n_input,
        "input_tokens_details": {"cached_tokens": made.n_cached, "cache_write_tokens": made.n_written},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": made.n_input,
    }
    reply: DecisionReply = {"model": made.model, "answers": answers, "usage": usage}
    return JSONResponse(reply)
