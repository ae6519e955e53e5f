"""``POST /token_stream``: a query in, the raw text of the answer out as it is generated."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import anyio
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.body import read_json
from app.api.errors import body_of, service_error
from app.chat_template import Message
from app.service import Generation, GenerationFailed, Prompt, Service

logger = logging.getLogger("tokenstream.api")

# Separates the text from the figures of a request with "details": a character that text does not use.
RECORD_SEPARATOR = "\x1e"

StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Turn(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: str


class TokenStreamRequest(BaseModel):
    """The body of ``POST /token_stream``; what it leaves out is taken from the context or the settings."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    query: Annotated[str | None, Field(min_length=1, description="What the model is asked.")] = None
    messages: Annotated[
        list[Turn] | None,
        Field(min_length=1, max_length=1024, description="A conversation, in place of the query."),
    ] = None
    context: Annotated[str | None, Field(description="The context to answer in.")] = None
    details: Annotated[bool | None, Field(description="End the stream with a line of figures.")] = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=10)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=0, lt=2**31)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    typical_p: Annotated[float | None, Field(gt=0, le=1)] = None
    repetition_penalty: Annotated[
        float | None,
        Field(gt=0, le=10, validation_alias=AliasChoices("repetition_penalty", "repeat_penalty")),
    ] = None
    repeat_last_n: Annotated[int | None, Field(ge=-1, lt=2**31)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int | None, Field(ge=0, lt=2**32)] = None
    stop: Annotated[list[StopString], Field(max_length=16), BeforeValidator(_as_list)] | None = None
    ignore_eos: bool | None = None

    @model_validator(mode="after")
    def _ask_once(self) -> TokenStreamRequest:
        if self.query is None and self.messages is None:
            raise ValueError("query: is required, or messages in its place")
        if self.query is not None and self.messages is not None:
            raise ValueError("messages: should not be given beside query")
        return self

    def prompt(self) -> Prompt:
        """What is asked."""
        if self.messages is not None:
            return Prompt(tuple(Message(turn.role, turn.content) for turn in self.messages), self.context)
        assert self.query is not None
        return Prompt((Message("user", self.query),), self.context)

    def overrides(self) -> dict[str, Any]:
        """The SamplingParams fields that the request sets."""
        fields = self.model_dump(exclude={"query", "messages", "context", "details"}, exclude_none=True)
        if "stop" in fields:
            fields["stop"] = tuple(fields["stop"])
        return fields


async def token_stream(request: Request) -> Response:
    """Answer a query as ``text/plain``, chunk by chunk."""
    service: Service = request.app.state.service
    body = await read_json(request, TokenStreamRequest)
    generation = await service.generate(body.prompt(), body.overrides())
    return TextStream(request, generation, details=bool(body.details))


class TextStream(Response):
    """Sends an answer as it is generated, from its first token on; frees it when the client goes away.

    Until the first token nothing is sent, so that a failure by then has a status of its own.
    """

    media_type = "text/plain"

    def __init__(self, request: Request, generation: Generation, *, details: bool) -> None:
        self._request = request
        self._generation = generation
        self._details = details
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        # The length is not known yet; init_headers saw an empty body.
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, or stop with it when the client is gone."""
        try:
            async with anyio.create_task_group() as tasks:

                async def until_disconnected() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    tasks.cancel_scope.cancel()

                tasks.start_soon(until_disconnected)
                await self._send_all(scope, receive, send)
                tasks.cancel_scope.cancel()
        except asyncio.CancelledError:
            # The server ends and the time of grace is over. The stream stays without its end, so that
            # the client sees that it was cut.
            logger.warning("an answer was cut off after %d tokens", self._generation.n_generated)
        finally:
            self._generation.close()

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async for text in self._texts():
                if not started:
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    started = True
                body = text.encode("utf-8", "replace")
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except GenerationFailed as error:
            if not started:
                await service_error(self._request, error)(scope, receive, send)
            elif self._details:
                body = (RECORD_SEPARATOR + json.dumps(body_of(error))).encode()
                await send({"type": "http.response.body", "body": body})
            # Otherwise the chunked body stays without its end, which tells the client that it is not whole.
            return
        if not started:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b""})

    async def _texts(self) -> AsyncIterator[str]:
        async for text in self._generation:
            yield text
        if self._details:
            yield "\n" + RECORD_SEPARATOR + json.dumps(figures(self._generation))


def figures(generation: Generation) -> dict[str, Any]:
    """The figures of a finished answer."""
    assert generation.finish_reason is not None
    return {
        "finish_reason": generation.finish_reason.value,
        "prompt_tokens": generation.n_prompt,
        "cached_tokens": generation.n_cached,
        "generated_tokens": generation.n_generated,
        "time_to_first_token": round(generation.time_to_first_token, 6),
        "tokens_per_second": round(generation.tokens_per_second, 2),
    }
