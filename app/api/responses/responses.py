"""``POST /v1/responses`` and ``POST /v1/responses/input_tokens``."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.dialect import Problem
from app.api.http.admission import generate, place_of
from app.api.http.answering import WholeAnswer
from app.api.http.auth import key_name_of
from app.api.http.body import read_json
from app.api.http.early import EARLY_EVENTS
from app.api.http.events import event, event_stream
from app.api.http.problems import invalid
from app.api.responses.conversation import constraint_of, conversation, prompt_of
from app.api.responses.output import Output, new_id
from app.api.responses.replies import (
    InputTokens,
    ResponseEvent,
    ResponseObject,
    ResponseUsage,
    Status,
)
from app.api.responses.requests import ResponsesRequest
from app.api.responses.stored import store_of
from app.chat.messages import Message, ToolCall
from app.service import AnswerReader, FinishReason, Generation, Model, Service, Step, ToolUse, collect


async def responses(request: Request) -> Response:
    body = await read_json(request, ResponsesRequest)
    turns = conversation(body, _previous(request, body))
    prompt = prompt_of(body, turns)
    [generation] = await generate(
        request,
        prompt,
        body.overrides(),
        constraint=constraint_of(body),
        early=EARLY_EVENTS if body.stream else None,
    )
    answer = _Answer(generation.model, body, turns, prompt.tools, generation)
    if body.store is not False:
        keep = partial(store_of(request).add, key=key_name_of(request))
        answer.on_end = lambda response, turns: keep(response["id"], json.dumps(response).encode(), turns)
    if not body.stream:
        return WholeAnswer(request, [generation], answer.whole)
    return event_stream(
        request, [generation], answer.events, end=answer.last_events, error_event=answer.failed
    )


async def input_tokens(request: Request) -> Response:
    """Count the tokens of the prompt that a request would have."""
    service: Service = request.app.state.service
    body = await read_json(request, ResponsesRequest)
    prompt = prompt_of(body, conversation(body, _previous(request, body)))
    count: InputTokens = {
        "object": "response.input_tokens",
        "input_tokens": len(await service.tokens(prompt, place_of(request))),
    }
    return JSONResponse(count)


def _previous(request: Request, body: ResponsesRequest) -> Sequence[Message]:
    """The turns of the response that this one continues, with its answer."""
    id_ = body.previous_response_id
    if id_ is None:
        return ()
    stored = store_of(request).get(id_, key_name_of(request))
    if stored is None:
        raise invalid(f"{id_!r} is not stored; responses are kept for an hour", "previous_response_id")
    return stored.conversation


class _Answer:
    """The response to one request.

    Attributes:
        on_end: Called with the complete response, and with the conversation that ends in its answer.
    """

    def __init__(
        self,
        model: Model,
        body: ResponsesRequest,
        turns: Sequence[Message],
        tools: ToolUse | None,
        generation: Generation,
    ) -> None:
        self.on_end: Callable[[ResponseObject, Sequence[Message]], None] | None = None
        self._body = body
        self._turns = turns
        self._generation = generation
        self._reader = AnswerReader(model, tools)
        self._output = Output()
        self._is_begun = False
        self._response = _begun(model, body)

    async def whole(self) -> ResponseObject:
        [answer] = await collect([self._generation])
        if answer.outputs:
            self._read(Step(answer.outputs))
        return self._completed()

    def events(self, _index: int, step: Step) -> bytes:
        self._begin()
        self._read(step)
        return _encoded(self._output.take_events())

    def last_events(self) -> bytes:
        self._begin()
        response = self._completed()
        self._output.emit(f"response.{response['status']}", response=response)
        return _encoded(self._output.take_events())

    def failed(self, problem: Problem) -> bytes:
        self._begin()
        self._output.close("incomplete")
        error = {"code": "server_error", "message": problem.message}
        response = self._response | {"status": "failed", "error": error, "output": self._output.items}
        self._output.emit("response.failed", response=response)
        return _encoded(self._output.take_events())

    def _begin(self) -> None:
        if not self._is_begun:
            self._is_begun = True
            for type_ in ("response.created", "response.in_progress"):
                self._output.emit(type_, response=copy.deepcopy(self._response))

    def _read(self, step: Step) -> None:
        for part in self._reader.read(step):
            self._output.add(part)

    def _completed(self) -> ResponseObject:
        is_cut = self._generation.finish_reason not in (FinishReason.EOS, FinishReason.STOP)
        status: Status = "incomplete" if is_cut else "completed"
        is_call_cut = bool(self._reader.calls) and not self._reader.calls[-1].is_complete
        self._output.close("incomplete" if is_call_cut else status)
        response = self._response
        response["status"] = status
        response["incomplete_details"] = {"reason": "max_output_tokens"} if is_cut else None
        response["output"] = self._output.items
        response["usage"] = _usage(self._generation)
        if self.on_end is not None:
            self.on_end(response, [*self._turns, _turn(self._output)])
        return response


def _begun(model: Model, body: ResponsesRequest) -> ResponseObject:
    def given(name: str) -> object:
        value = getattr(body, name)
        return value.model_dump(by_alias=True, exclude_none=True) if hasattr(value, "model_dump") else value

    more = body.model_extra or {}
    metadata = more.get("metadata")
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": metadata if isinstance(metadata, dict) else {},
        "model": model.name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": body.store is not False,
        "temperature": body.temperature,
        "text": {"format": _format(body)},
        "tool_choice": given("tool_choice") or "auto",
        "tools": [
            {"type": "function", "name": tool.name, "description": tool.description, "strict": tool.strict}
            | {"parameters": tool.parameters}
            for tool in body.tools or ()
            if tool.type == "function"
        ],
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def _format(body: ResponsesRequest) -> dict[str, object]:
    wanted = body.text.format if body.text else None
    if wanted is None:
        return {"type": "text"}
    return wanted.model_dump(by_alias=True, exclude_none=True)


def _usage(generation: Generation) -> ResponseUsage:
    return {
        "input_tokens": generation.n_prompt,
        "input_tokens_details": {"cached_tokens": generation.n_cached, "cache_write_tokens": 0},
        "output_tokens": generation.n_generated,
        "output_tokens_details": {"reasoning_tokens": generation.n_thought},
        "total_tokens": generation.n_prompt + generation.n_generated,
    }


def _turn(output: Output) -> Message:
    """The answer as a turn of a conversation, without calls that are cut."""
    text = thoughts = ""
    calls: list[ToolCall] = []
    for item in output.items:
        if item["type"] == "message":
            text += item["content"][0]["text"]
        elif item["type"] == "reasoning":
            thoughts += item["content"][0]["text"]
        elif item["status"] == "completed":
            calls.append(ToolCall(item["call_id"], item["name"], item["arguments"]))
    return Message("assistant", text, tuple(calls), thoughts=thoughts)


def _encoded(events: Sequence[ResponseEvent]) -> bytes:
    return b"".join(event(data, prefix=f"event: {data['type']}\ndata: ") for data in events)
