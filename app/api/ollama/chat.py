"""``POST /api/chat`` and ``POST /api/generate``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.api.http.admission import generate as generate_for
from app.api.http.admission import use_model
from app.api.http.body import read_json
from app.api.http.problems import naming
from app.api.ollama.answers import ChatAnswer, TextAnswer, early, loaded, respond
from app.api.ollama.replies import Answer
from app.api.ollama.requests import (
    AnsweringRequest,
    OllamaChatMessage,
    OllamaChatRequest,
    OllamaGenerateRequest,
)
from app.chat.messages import Message, Tool, ToolCall
from app.service import ChatPrompt, Constraint, Generation, JSONSchema, Prompt, Service, TextPrompt, ToolUse

# Fields of a line without text.
_NO_MESSAGE: Mapping[str, Any] = {"message": {"role": "assistant", "content": ""}}
_NO_TEXT: Mapping[str, Any] = {"response": ""}


async def chat(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_json(request, OllamaChatRequest)
    if not body.messages:
        return JSONResponse({**await _loaded(request, body), **_NO_MESSAGE})
    _keep(service, body)
    prompt = _chat_prompt(body, body.messages)
    generations = await _start(request, body, prompt, _NO_MESSAGE)
    answer = ChatAnswer(generations[0].model, body, generations[0], prompt.tools)
    return respond(request, answer, stream=body.stream is not False)


async def generate(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_json(request, OllamaGenerateRequest)
    if not body.prompt and not body.suffix:
        return JSONResponse({**await _loaded(request, body), **_NO_TEXT})
    _keep(service, body)
    generations = await _start(request, body, _prompt(body), _NO_TEXT)
    answer = TextAnswer(generations[0].model, body, generations[0])
    return respond(request, answer, stream=body.stream is not False)


async def _start(
    request: Request, body: AnsweringRequest, prompt: Prompt, empty: Mapping[str, Any]
) -> list[Generation]:
    """Start the answer; ``empty``: the fields of a line without text."""
    service: Service = request.app.state.service
    stream = None if body.stream is False else early(service.entry_of(prompt).name, empty)
    return await generate_for(request, prompt, body.overrides(), constraint=_constraint(body), early=stream)


def _prompt(body: OllamaGenerateRequest) -> Prompt:
    text = body.prompt or ""
    if body.raw or body.suffix:
        return TextPrompt(text, suffix=body.suffix or None, model=body.model)
    system = (Message("system", body.system),) if body.system else ()
    return ChatPrompt(
        (*system, Message("user", text)), field="prompt", thinking=body.thinking(), model=body.model
    )


def _chat_prompt(body: OllamaChatRequest, messages: list[OllamaChatMessage]) -> ChatPrompt:
    """The prompt of a conversation.

    Raises:
        ApiError: A message or a tool is invalid.
    """
    tools = []
    for i, tool in enumerate(body.tools or ()):
        function = tool.function
        with naming(f"tools.{i}.function.parameters"):
            tools.append(Tool(function.name, function.description, function.parameters or {}))
    last = messages[-1]
    return ChatPrompt(
        tuple(_message(i, message) for i, message in enumerate(messages)),
        tools=ToolUse(tuple(tools)) if tools else None,
        continues=last.role == "assistant" and not last.tool_calls,
        thinking=body.thinking(),
        model=body.model,
    )


async def _loaded(request: Request, body: AnsweringRequest) -> Answer:
    """The answer to a request without a prompt: it loads the model, or unloads it with ``keep_alive`` 0."""
    service: Service = request.app.state.service
    prompt = TextPrompt(model=body.model)
    if body.keeps_for == 0 and service.models.are_several:
        entry = service.entry_of(prompt)
        if entry.is_open:
            service.models.keep(entry, 0)
        return loaded(entry.name, "unload")
    model = await use_model(request, prompt)
    _keep(service, body)
    return loaded(model.name, "load")


def _keep(service: Service, body: AnsweringRequest) -> None:
    """Set the idle time of the model, if the request has one and the server has several models."""
    if body.keep_alive is not None and service.models.are_several:
        seconds = body.keeps_for
        service.models.keep(service.entry_of(TextPrompt(model=body.model)), seconds)


def _message(index: int, message: OllamaChatMessage) -> Message:
    place = f"messages.{index}"
    calls = []
    for i, call in enumerate(message.tool_calls or ()):
        with naming(f"{place}.tool_calls.{i}.function.arguments"):
            arguments = json.dumps(call.function.arguments, ensure_ascii=False)
            calls.append(ToolCall(call.id or f"call_{index}_{i}", call.function.name, arguments))
    with naming(place):
        return Message(
            message.role,
            message.content or "",
            tuple(calls),
            message.tool_call_id,
            message.tool_name,
            message.thinking or "",
        )


def _constraint(body: AnsweringRequest) -> Constraint | None:
    if not body.format:
        return None
    return JSONSchema({"type": "object"} if body.format == "json" else body.format, "format")
