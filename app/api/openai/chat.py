"""``POST /v1/chat/completions``: a conversation that the model answers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from app.api.http.answering import WholeAnswer
from app.api.http.body import read_json
from app.api.http.problems import invalid
from app.api.http.sources import knowledge_use, source
from app.api.openai.answers import (
    Collected,
    Envelope,
    best,
    chat_logprobs,
    collect,
    finish_reason,
    new_id,
    usage,
)
from app.api.openai.events import event_stream
from app.api.openai.requests import ChatMessage, ChatRequest, NamedToolChoice
from app.chat.messages import Message, Tool, ToolCall
from app.chat.tools import ArgumentsDelta, CallDelta, ContentDelta, Delta, ToolCallParser
from app.service import (
    ChatPrompt,
    Constraint,
    Generation,
    JSONSchema,
    Model,
    Regex,
    Service,
    Step,
    ToolUse,
    together,
)


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    service: Service = request.app.state.service
    body = await read_json(request, ChatRequest)
    prompt = chat_prompt(body)
    generations = await service.generate(
        prompt, body.overrides(), constraint=_constraint(body), n=body.n_generated
    )
    answer = ChatAnswer(service.model, body, prompt, generations)
    if body.stream:
        return event_stream(request, generations, answer.chunks())
    return WholeAnswer(request, generations, answer.whole)


# --- from the request to what is asked


def chat_prompt(body: ChatRequest) -> ChatPrompt:
    """What a request asks.

    Raises:
        ApiError: A message cannot be used.
    """
    messages = tuple(_message(i, message) for i, message in enumerate(body.messages))
    continues = messages[-1].role == "assistant" and not messages[-1].tool_calls
    return ChatPrompt(
        messages, body.context, _tool_use(body), continues, knowledge=knowledge_use(body.knowledge)
    )


def _message(index: int, message: ChatMessage) -> Message:
    place = f"messages.{index}"
    calls = []
    for i, call in enumerate(message.tool_calls or ()):
        with _naming(f"{place}.tool_calls.{i}.function.arguments"):
            calls.append(ToolCall(call.id, call.function.name, call.function.arguments))
    role = "system" if message.role == "developer" else message.role
    with _naming(place):
        return Message(role, message.text, tuple(calls), message.tool_call_id, message.name)


def _tool_use(body: ChatRequest) -> ToolUse | None:
    if not body.tools or body.tool_choice == "none":
        return None
    tools = []
    for i, function in enumerate(tool.function for tool in body.tools):
        with _naming(f"tools.{i}.function.parameters"):
            tools.append(Tool(function.name, function.description, function.parameters or {}))
    wanted = body.tool_choice or "auto"
    only = wanted.function.name if isinstance(wanted, NamedToolChoice) else None
    parallel = body.parallel_tool_calls is not False and only is None
    return ToolUse(tuple(tools), must_call=wanted != "auto", only=only, parallel=parallel)


@contextlib.contextmanager
def _naming(place: str) -> Iterator[None]:
    """Say of a value that cannot be used where in the body it is."""
    try:
        yield
    except ValueError as error:
        raise invalid(str(error), place) from None


def _constraint(body: ChatRequest) -> Constraint | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is not None:
        return JSONSchema(wanted.json_schema.schema_, "response_format.json_schema.schema")
    if isinstance(wanted.value, str):
        return Regex(wanted.value, "response_format.value")
    return JSONSchema(wanted.value or {"type": "object"}, "response_format.value")


# --- from what is generated to the response


class ChatAnswer:
    """One request's answers on their way."""

    def __init__(
        self,
        model: Model,
        body: ChatRequest,
        prompt: ChatPrompt,
        generations: Sequence[Generation],
    ) -> None:
        self._model = model
        self._body = body
        self._tools = prompt.tools
        # What the answer goes on from is part of it, if asked for.
        self._begin = prompt.messages[-1].content if body.echo and prompt.continues else ""
        self._generations = generations
        sources = [source(passage).model_dump() for passage in generations[0].sources]
        self._sources = {"sources": sources} if sources else {}

    def _parser(self) -> ToolCallParser | None:
        if self._tools is None:
            return None
        tool_format = self._model.tokenizer.template.tool_format
        return ToolCallParser(tool_format, self._tools.tools)

    async def whole(self) -> dict[str, Any]:
        """The body of the response."""
        answers = best(await collect(self._generations), self._body.n_choices)
        envelope = Envelope(new_id("chatcmpl-"), "chat.completion", self._model)
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return envelope.wrap(choices, usage=usage(self._generations), **self._sources)

    def _choice(self, index: int, answer: Collected) -> dict[str, Any]:
        content = self._begin + answer.text
        calls: list[dict[str, Any]] = []
        if parser := self._parser():
            content, calls = _gathered([*parser.feed(answer.text), *parser.finish()])
            content = self._begin + content
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not content else content,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(answer.outputs),
            "finish_reason": _reason(answer.generation, bool(calls)),
        }

    def _logprobs(self, outputs: Sequence[Any]) -> dict[str, Any] | None:
        return chat_logprobs(self._model.vocab, outputs) if self._body.logprobs else None

    async def chunks(self) -> AsyncIterator[list[dict[str, Any]]]:
        """The chunks of every step."""
        envelope = Envelope(new_id("chatcmpl-"), "chat.completion.chunk", self._model)
        # A stream that is to end with usage has the field, empty, in every chunk.
        more: dict[str, Any] = {"usage": None} if self._body.includes_usage else {}
        sources = self._sources  # in the first chunk
        streams = [_Stream(index, self, generation) for index, generation in enumerate(self._generations)]
        async for steps in together(self._generations):
            choices = [choice for index, step in steps for choice in streams[index].choices(step)]
            chunks = [envelope.wrap([choice], **more) for choice in choices]
            if chunks:
                chunks[0].update(sources)
                sources = {}
                yield chunks
        if self._body.includes_usage:
            yield [envelope.wrap([], usage=usage(self._generations))]


class _Stream:
    """One choice of a stream."""

    def __init__(self, index: int, answer: ChatAnswer, generation: Generation) -> None:
        self._index = index
        self._answer = answer
        self._generation = generation
        self._parser = answer._parser()
        self._is_begun = False
        self._has_calls = False

    def choices(self, step: Step) -> list[dict[str, Any]]:
        """What a step adds: the deltas, and the end behind them."""
        deltas: list[dict[str, Any]] = []
        if not self._is_begun:
            self._is_begun = True
            deltas.append({"role": "assistant", "content": "", "refusal": None})
            if self._answer._begin:
                deltas.append({"content": self._answer._begin})
        text, is_last = step.text, step.outputs[-1].finish_reason is not None
        if self._parser is None:
            deltas += [{"content": text}] if text else []
        else:
            parsed = [*self._parser.feed(text), *(self._parser.finish() if is_last else ())]
            self._has_calls |= any(isinstance(delta, CallDelta) for delta in parsed)
            deltas += map(_delta, parsed)
        logprobs = self._answer._logprobs(step.outputs)
        if logprobs and not deltas:
            deltas.append({})  # the text of these tokens is held back
        choices = [self._choice(delta) for delta in deltas]
        if choices:
            choices[-1]["logprobs"] = logprobs
        if is_last:
            choices.append(self._choice({}, _reason(self._generation, self._has_calls)))
        return choices

    def _choice(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _reason(generation: Generation, has_calls: bool) -> str:
    reason = finish_reason(generation)
    return "tool_calls" if has_calls and reason == "stop" else reason


def _delta(delta: Delta) -> dict[str, Any]:
    if isinstance(delta, ContentDelta):
        return {"content": delta.text}
    if isinstance(delta, CallDelta):
        function = {"name": delta.name, "arguments": ""}
        return {
            "tool_calls": [{"index": delta.index, "id": delta.id, "type": "function", "function": function}]
        }
    return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]}


def _gathered(deltas: Sequence[Delta]) -> tuple[str, list[dict[str, Any]]]:
    """Content and calls of a whole answer."""
    content = ""
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        if isinstance(delta, ContentDelta):
            content += delta.text
        elif isinstance(delta, CallDelta):
            calls.append(
                {"id": delta.id, "type": "function", "function": {"name": delta.name, "arguments": ""}}
            )
        elif isinstance(delta, ArgumentsDelta):
            calls[delta.index]["function"]["arguments"] += delta.text
    return content, calls
