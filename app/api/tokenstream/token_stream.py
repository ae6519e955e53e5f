"""``POST /token_stream``: streams the text of an answer."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from app.api.dialect import Problem
from app.api.http.admission import generate
from app.api.http.answering import StreamedAnswer
from app.api.http.body import read_json
from app.api.http.errors import error_body
from app.api.http.fields import WHOLE, ModelName, SamplingFields, ThinkingFields
from app.api.http.sources import KnowledgeField, headers, knowledge_use, source
from app.api.tokenstream.replies import Figures
from app.chat.messages import Message
from app.service import ChatPrompt, Generation, Step

# Precedes the figures of a response with "details". Text does not contain it.
RECORD_SEPARATOR = "\x1e"


class Turn(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: str


class TokenStreamRequest(SamplingFields, ThinkingFields):
    """The body of ``POST /token_stream``. Missing fields come from the context or the settings."""

    query: Annotated[str | None, Field(min_length=1, description="The question.")] = None
    messages: Annotated[
        list[Turn] | None,
        Field(min_length=1, max_length=1024, description="A conversation, instead of the query."),
    ] = None
    context: Annotated[str | None, Field(description="Context to use. Default: CONTEXT_TYPE.")] = None
    details: Annotated[bool | None, Field(description="End the response with a line of figures.")] = None
    max_tokens: Annotated[int | None, Field(ge=1, description="Maximum tokens of the answer."), WHOLE] = None
    knowledge: KnowledgeField = None
    model: ModelName = None
    show_thinking: Annotated[
        bool | None, Field(description="Send thoughts too, between `<think>` and `</think>`.")
    ] = None

    @model_validator(mode="after")
    def _has_one_question(self) -> TokenStreamRequest:
        if self.query is None and self.messages is None:
            raise ValueError("query: is required, or messages instead")
        if self.query is not None and self.messages is not None:
            raise ValueError("messages: cannot be combined with query")
        return self

    def prompt(self) -> ChatPrompt:
        knowledge, thinking = knowledge_use(self.knowledge), self.thinking()
        if self.messages is not None:
            messages = tuple(Message(turn.role, turn.content) for turn in self.messages)
            return ChatPrompt(
                messages,
                self.context,
                continues=messages[-1].role == "assistant",
                knowledge=knowledge,
                thinking=thinking,
                reduces_max_tokens=False,
                model=self.model,
            )
        assert self.query is not None
        messages = (Message("user", self.query),)
        return ChatPrompt(
            messages,
            self.context,
            field="query",
            knowledge=knowledge,
            thinking=thinking,
            reduces_max_tokens=False,
            model=self.model,
        )

    def overrides(self) -> dict[str, Any]:
        """The fields of SamplingParams that the request sets."""
        return self.sampling() | ({} if self.max_tokens is None else {"max_tokens": self.max_tokens})


async def token_stream(request: Request) -> Response:
    body = await read_json(request, TokenStreamRequest)
    [generation] = await generate(request, body.prompt(), body.overrides())
    return StreamedAnswer(
        request,
        [generation],
        _ThinkingStream().encode if body.show_thinking else _encode,
        end=partial(_end, generation) if body.details else bytes,
        media_type="text/plain",
        error_part=_error_part if body.details else None,
        headers=headers(generation),
    )


def _encode(_index: int, step: Step) -> bytes:
    return step.text.encode("utf-8", "replace")


class _ThinkingStream:
    """Encodes an answer with its thoughts."""

    def __init__(self) -> None:
        self._is_thinking = False

    def encode(self, _index: int, step: Step) -> bytes:
        text = ""
        if step.thought:
            text += step.thought if self._is_thinking else f"<think>\n{step.thought}"
            self._is_thinking = True
        if self._is_thinking and (step.text or step.outputs[-1].finish_reason is not None):
            text += "\n</think>\n\n"
            self._is_thinking = False
        return (text + step.text).encode("utf-8", "replace")


def _end(generation: Generation) -> bytes:
    return f"\n{RECORD_SEPARATOR}{json.dumps(figures(generation))}".encode()


def _error_part(problem: Problem) -> bytes:
    return (RECORD_SEPARATOR + json.dumps(error_body(problem))).encode()


def figures(generation: Generation) -> Figures:
    """The figures of a complete answer."""
    assert generation.finish_reason is not None
    body: Figures = {
        "finish_reason": generation.finish_reason.value,
        "prompt_tokens": generation.n_prompt,
        "cached_tokens": generation.n_cached,
        "generated_tokens": generation.n_generated,
        "thinking_tokens": generation.n_thought,
        "time_to_first_token": round(generation.time_to_first_token, 6),
        "tokens_per_second": round(generation.tokens_per_second, 2),
    }
    if generation.chosen is not None:
        body["probabilities"] = generation.chosen.probabilities
        body["label_mass"] = generation.chosen.label_mass
    if generation.sources:
        body["sources"] = [source(passage) for passage in generation.sources]
    if generation.n_waiting:
        body["sources_waiting"] = generation.n_waiting
    return body
