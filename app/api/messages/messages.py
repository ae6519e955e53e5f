"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.http.admission import generate, place_of
from app.api.http.answering import WholeAnswer
from app.api.http.body import read_json
from app.api.http.early import EARLY_EVENTS
from app.api.http.events import event, event_stream
from app.api.messages.conversation import constraint_of, prompt_of
from app.api.messages.errors import messages_body
from app.api.messages.replies import Block, MessageReply, MessagesUsage, StopReason, TokenCount
from app.api.messages.requests import CountRequest, MessagesRequest
from app.service import (
    AnswerReader,
    CallDelta,
    ContentDelta,
    FinishReason,
    Generation,
    Model,
    Part,
    Service,
    Step,
    ThoughtDelta,
    ToolUse,
    collect,
)


async def messages(request: Request) -> Response:
    body = await read_json(request, MessagesRequest)
    prompt = prompt_of(body)
    [generation] = await generate(
        request,
        prompt,
        body.overrides(),
        constraint=constraint_of(body),
        early=EARLY_EVENTS if body.stream else None,
    )
    answer = _Answer(generation.model, body, prompt.tools, generation)
    if not body.stream:
        return WholeAnswer(request, [generation], answer.whole)
    return event_stream(
        request,
        [generation],
        answer.events,
        end=answer.last_events,
        error_event=lambda problem: event(messages_body(problem), prefix="event: error\ndata: "),
    )


async def count_tokens(request: Request) -> Response:
    """Count the tokens of the prompt that a request would have."""
    service: Service = request.app.state.service
    body = await read_json(request, CountRequest)
    count: TokenCount = {"input_tokens": len(await service.tokens(prompt_of(body), place_of(request)))}
    return JSONResponse(count)


class _Answer:
    """The response to one request."""

    def __init__(
        self, model: Model, body: MessagesRequest, tools: ToolUse | None, generation: Generation
    ) -> None:
        self._body = body
        self._generation = generation
        self._reader = AnswerReader(model, tools)
        self._model_name = model.name
        self._id = f"msg_{secrets.token_hex(12)}"
        self._kind = ""  # of the current block
        self._index = -1
        self._is_begun = False
        self._events: list[dict[str, Any]] = []

    # --- a stream

    def events(self, _index: int, step: Step) -> bytes:
        self._begin()
        for part in self._reader.read(step):
            self._add(part)
        return self._take_events()

    def last_events(self) -> bytes:
        self._begin()
        self._end_block()
        delta = {"stop_reason": self._stop_reason(), "stop_sequence": self._stop_sequence()}
        self._events.append({"type": "message_delta", "delta": delta, "usage": self._usage()})
        self._events.append({"type": "message_stop"})
        return self._take_events()

    def _begin(self) -> None:
        if not self._is_begun:
            self._is_begun = True
            message = self._message([])
            message["stop_reason"] = message["stop_sequence"] = None
            self._events.append({"type": "message_start", "message": message})

    def _add(self, part: Part) -> None:
        if isinstance(part, CallDelta):
            self._begin_block("tool_use", {"type": "tool_use", "id": part.id, "name": part.name, "input": {}})
        elif isinstance(part, ThoughtDelta):
            if self._kind != "thinking":
                self._begin_block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            self._add_delta({"type": "thinking_delta", "thinking": part.text})
        elif isinstance(part, ContentDelta):
            if self._kind != "text":
                self._begin_block("text", {"type": "text", "text": ""})
            self._add_delta({"type": "text_delta", "text": part.text})
        else:
            self._add_delta({"type": "input_json_delta", "partial_json": part.text})

    def _begin_block(self, kind: str, block: Block) -> None:
        self._end_block()
        self._kind, self._index = kind, self._index + 1
        self._events.append({"type": "content_block_start", "index": self._index, "content_block": block})

    def _add_delta(self, delta: dict[str, str]) -> None:
        self._events.append({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _end_block(self) -> None:
        if self._kind:
            if self._kind == "thinking":
                self._add_delta({"type": "signature_delta", "signature": ""})
            self._events.append({"type": "content_block_stop", "index": self._index})
            self._kind = ""

    def _take_events(self) -> bytes:
        events, self._events = self._events, []
        return b"".join(event(data, prefix=f"event: {data['type']}\ndata: ") for data in events)

    # --- a whole message

    async def whole(self) -> MessageReply:
        [answer] = await collect([self._generation])
        text, calls = self._reader.read_all(answer.text)
        content: list[Block] = []
        if answer.thought:
            content.append({"type": "thinking", "thinking": answer.thought, "signature": ""})
        if text:
            content.append({"type": "text", "text": text})
        for call in calls:
            input_ = _parsed(call.arguments)
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": input_})
        return self._message(content)

    def _message(self, content: Sequence[Block]) -> MessageReply:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model_name,
            "content": list(content),
            "stop_reason": self._stop_reason(),
            "stop_sequence": self._stop_sequence(),
            "usage": self._usage(),
        }

    def _stop_sequence(self) -> str | None:
        stop = self._generation.stopped_by
        return stop if stop in (self._body.stop_sequences or ()) else None

    def _stop_reason(self) -> StopReason:
        if self._generation.finish_reason not in (FinishReason.EOS, FinishReason.STOP):
            return "max_tokens"
        if self._reader.has_calls:
            return "tool_use"
        return "stop_sequence" if self._stop_sequence() is not None else "end_turn"

    def _usage(self) -> MessagesUsage:
        generation = self._generation
        return {
            "input_tokens": generation.n_prompt - generation.n_cached,
            "cache_read_input_tokens": generation.n_cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": generation.n_generated,
            "output_tokens_details": {"thinking_tokens": generation.n_thought},
        }


def _parsed(arguments: str) -> dict[str, Any]:
    """The arguments of a call. If it is cut, the complete ones, as clients read them from a stream."""
    try:
        parsed = from_json(arguments, allow_partial=True)
    except ValueError:  # cut before the object
        return {}
    return parsed if isinstance(parsed, dict) else {}
