"""``POST /token_stream``: a query in, the raw text of the answer out as it is generated."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from app.api.http.answering import StreamedAnswer
from app.api.http.body import read_json
from app.api.http.errors import own_body
from app.api.http.fields import SamplingFields
from app.api.http.problems import Problem
from app.api.http.sources import KnowledgeField, header, knowledge_use, source
from app.chat.messages import Message
from app.service import ChatPrompt, Generation, Service

# Separates the text from the figures of a request with "details": a character that text does not use.
RECORD_SEPARATOR = "\x1e"


class Turn(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: str


class TokenStreamRequest(SamplingFields):
    """The body of ``POST /token_stream``; what it leaves out is taken from the context or the settings."""

    query: Annotated[str | None, Field(min_length=1, description="What the model is asked.")] = None
    messages: Annotated[
        list[Turn] | None,
        Field(min_length=1, max_length=1024, description="A conversation, in place of the query."),
    ] = None
    context: Annotated[str | None, Field(description="The context to answer in.")] = None
    details: Annotated[bool | None, Field(description="End the stream with a line of figures.")] = None
    max_tokens: Annotated[int | None, Field(ge=1, description="Longest answer.")] = None
    knowledge: KnowledgeField = None

    @model_validator(mode="after")
    def _ask_once(self) -> TokenStreamRequest:
        if self.query is None and self.messages is None:
            raise ValueError("query: is required, or messages in its place")
        if self.query is not None and self.messages is not None:
            raise ValueError("messages: should not be given beside query")
        return self

    def prompt(self) -> ChatPrompt:
        """What is asked."""
        knowledge = knowledge_use(self.knowledge)
        if self.messages is not None:
            messages = tuple(Message(turn.role, turn.content) for turn in self.messages)
            return ChatPrompt(messages, self.context, knowledge=knowledge)
        assert self.query is not None
        return ChatPrompt((Message("user", self.query),), self.context, field="query", knowledge=knowledge)

    def overrides(self) -> dict[str, Any]:
        """The SamplingParams fields that the request sets."""
        return self.sampling() | ({} if self.max_tokens is None else {"max_tokens": self.max_tokens})


async def token_stream(request: Request) -> Response:
    """Answer a query as ``text/plain``, chunk by chunk."""
    service: Service = request.app.state.service
    body = await read_json(request, TokenStreamRequest)
    generations = await service.generate(body.prompt(), body.overrides())
    details = bool(body.details)
    return StreamedAnswer(
        request,
        generations,
        _parts(generations[0], details=details),
        media_type="text/plain",
        error_part=_error_part if details else None,
        headers=header(generations[0].sources),
    )


async def _parts(generation: Generation, *, details: bool) -> AsyncIterator[bytes]:
    async for step in generation:
        if text := step.text:
            yield text.encode("utf-8", "replace")
    if details:
        yield f"\n{RECORD_SEPARATOR}{json.dumps(figures(generation))}".encode()


def _error_part(problem: Problem) -> bytes:
    return (RECORD_SEPARATOR + json.dumps(own_body(problem))).encode()


def figures(generation: Generation) -> dict[str, Any]:
    """The figures of a finished answer."""
    assert generation.finish_reason is not None
    sources = [source(passage).model_dump() for passage in generation.sources]
    return {
        "finish_reason": generation.finish_reason.value,
        "prompt_tokens": generation.n_prompt,
        "cached_tokens": generation.n_cached,
        "generated_tokens": generation.n_generated,
        "time_to_first_token": round(generation.time_to_first_token, 6),
        "tokens_per_second": round(generation.tokens_per_second, 2),
        **({"sources": sources} if sources else {}),
    }
