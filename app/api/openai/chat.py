"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from app.api.http.admission import generate
from app.api.http.answering import WholeAnswer
from app.api.http.body import read_json
from app.api.http.early import EARLY_EVENTS
from app.api.http.problems import naming
from app.api.http.sources import Source, knowledge_use, source
from app.api.openai.answers import chat_logprobs, envelope, finish_reason, usage
from app.api.openai.events import event_stream
from app.api.openai.messages import AllowedToolsChoice, ChatMessage, NamedToolChoice
from app.api.openai.replies import (
    AssistantMessage,
    ChatChoice,
    ChatChoiceDelta,
    ChatCompletion,
    ChatCompletionChunk,
    ChatFinishReason,
    ChatLogprobs,
    MessageDelta,
    Usage,
)
from app.api.openai.requests import ChatRequest
from app.chat.messages import Message, Tool, ToolCall
from app.service import (
    AnswerReader,
    CallDelta,
    ChatPrompt,
    Collected,
    Constraint,
    ContentDelta,
    Generation,
    JSONSchema,
    Model,
    Output,
    Part,
    Regex,
    Step,
    ThoughtDelta,
    ToolUse,
    best,
    collect,
)


async def chat_completions(request: Request) -> Response:
    body = await read_json(request, ChatRequest)
    prompt = chat_prompt(body)
    generations = await generate(
        request,
        prompt,
        body.overrides(),
        constraint=_constraint(body),
        n=body.n_generated,
        early=EARLY_EVENTS if body.stream else None,
    )
    answer = ChatAnswer(generations[0].model, body, prompt, generations)
    if body.stream:
        return event_stream(request, generations, answer.chunks, answer.last_chunks)
    return WholeAnswer(request, generations, answer.whole)


# --- request


def chat_prompt(body: ChatRequest) -> ChatPrompt:
    """The prompt of a request.

    Raises:
        ApiError: A message or a tool is invalid.
    """
    messages = tuple(_message(i, message) for i, message in enumerate(body.messages))
    continues = messages[-1].role == "assistant" and not messages[-1].tool_calls
    return ChatPrompt(
        messages,
        body.context,
        _tool_use(body),
        continues,
        knowledge=knowledge_use(body.knowledge),
        thinking=body.thinking(),
        model=body.model,
    )


def _message(index: int, message: ChatMessage) -> Message:
    place = f"messages.{index}"
    calls = []
    for i, call in enumerate(message.calls):
        with naming(f"{place}.tool_calls.{i}.function.arguments"):
            calls.append(ToolCall(call.id, call.function.name, call.function.arguments or "{}"))
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    call_id = message.name if message.role == "function" else message.tool_call_id
    name = message.name if role == "tool" else None
    with naming(place):
        return Message(role, message.text, tuple(calls), call_id, name, message.thoughts)


def _tool_use(body: ChatRequest) -> ToolUse | None:
    if not body.tools or body.tool_choice == "none":
        return None
    tools = []
    for i, function in enumerate(tool.function for tool in body.tools):
        with naming(f"tools.{i}.function.parameters"):
            tools.append(Tool(function.name, function.description, function.parameters or {}))
    choice = body.tool_choice or "auto"
    if isinstance(choice, AllowedToolsChoice):
        allowed = {tool.function.name for tool in choice.allowed_tools.tools}
        tools = [tool for tool in tools if tool.name in allowed]
        choice = choice.allowed_tools.mode
    if not tools:
        return None
    only = choice.function.name if isinstance(choice, NamedToolChoice) else None
    parallel = body.parallel_tool_calls is not False and only is None
    strict = frozenset(tool.function.name for tool in body.tools if tool.function.strict)
    return ToolUse(tuple(tools), must_call=choice != "auto", only=only, parallel=parallel, strict=strict)


def _constraint(body: ChatRequest) -> Constraint | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is not None:
        field, is_strict = "response_format.json_schema.schema", bool(wanted.json_schema.strict)
        return JSONSchema(wanted.json_schema.schema_, field, is_strict)
    if isinstance(wanted.value, str):
        return Regex(wanted.value, "response_format.value")
    if wanted.schema_ is not None:
        return JSONSchema(wanted.schema_, "response_format.schema")
    if wanted.value is not None:
        return JSONSchema(wanted.value, "response_format.value")
    return JSONSchema({"type": "object"}, "response_format")


# --- response


class ChatAnswer:
    """The response to one request."""

    def __init__(
        self, model: Model, body: ChatRequest, prompt: ChatPrompt, generations: Sequence[Generation]
    ) -> None:
        self.model = model
        self._body = body
        self.tools = prompt.tools
        # With "echo" the answer begins with the continued message.
        self.beginning = prompt.messages[-1].content if body.echo and prompt.continues else ""
        self._generations = generations
        self._sources: list[Source] = [source(passage) for passage in generations[0].sources]
        self._n_waiting = generations[0].n_waiting
        self._chosen = generations[0].chosen
        self._head = envelope(self.model, "chatcmpl-")
        self._streams = [_ChoiceStream(index, self, one) for index, one in enumerate(generations)]

    async def whole(self) -> ChatCompletion:
        answers = best(await collect(self._generations), self._body.n_choices)
        head = self._head
        body: ChatCompletion = {
            "id": head["id"],
            "created": head["created"],
            "model": head["model"],
            "system_fingerprint": head["system_fingerprint"],
            "object": "chat.completion",
            "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
            "usage": usage(self._generations),
        }
        if self._sources:
            body["sources"] = self._sources
        if self._n_waiting:
            body["sources_waiting"] = self._n_waiting
        if self._chosen is not None:
            body["probabilities"] = self._chosen.probabilities
            body["label_mass"] = self._chosen.label_mass
        return body

    def _choice(self, index: int, answer: Collected) -> ChatChoice:
        reader = AnswerReader(self.model, self.tools)
        text, calls = reader.read_all(answer.text)
        content = self.beginning + text
        message: AssistantMessage = {
            "role": "assistant",
            "content": None if calls and not content else content,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in calls
            ]
        if answer.thought:
            message["reasoning_content"] = message["reasoning"] = answer.thought
        return {
            "index": index,
            "message": message,
            "logprobs": self.logprobs(answer.outputs),
            "finish_reason": _finish_reason(answer.generation, has_calls=reader.has_calls),
        }

    def logprobs(self, outputs: Sequence[Output]) -> ChatLogprobs | None:
        return chat_logprobs(self.model.vocab, outputs) if self._body.logprobs else None

    def chunks(self, index: int, step: Step) -> list[ChatCompletionChunk]:
        """The chunks of a step of one choice."""
        chunks = [self._chunk([choice]) for choice in self._streams[index].choices(step)]
        if chunks and self._sources:  # in the first chunk
            chunks[0]["sources"], self._sources = self._sources, []
        if chunks and self._n_waiting:
            chunks[0]["sources_waiting"], self._n_waiting = self._n_waiting, 0
        if chunks and self._chosen is not None:
            chunks[0]["probabilities"], chunks[0]["label_mass"] = (
                self._chosen.probabilities,
                self._chosen.label_mass,
            )
            self._chosen = None
        return chunks

    def last_chunks(self) -> list[ChatCompletionChunk]:
        return [self._chunk([], usage(self._generations))] if self._body.includes_usage else []

    def _chunk(self, choices: list[ChatChoiceDelta], final: Usage | None = None) -> ChatCompletionChunk:
        head = self._head
        chunk: ChatCompletionChunk = {
            "id": head["id"],
            "created": head["created"],
            "model": head["model"],
            "system_fingerprint": head["system_fingerprint"],
            "object": "chat.completion.chunk",
            "choices": choices,
        }
        if self._body.includes_usage:  # OpenAI sends null before the last chunk
            chunk["usage"] = final
        return chunk


class _ChoiceStream:
    """The chunks of one choice."""

    def __init__(self, index: int, answer: ChatAnswer, generation: Generation) -> None:
        self._index = index
        self._answer = answer
        self._generation = generation
        self._reader = AnswerReader(answer.model, answer.tools)
        self._is_begun = False

    def choices(self, step: Step) -> list[ChatChoiceDelta]:
        deltas: list[MessageDelta] = []
        if not self._is_begun:
            self._is_begun = True
            deltas.append({"role": "assistant", "content": "", "refusal": None})
            if self._answer.beginning:
                deltas.append({"content": self._answer.beginning})
        deltas += map(_delta, self._reader.read(step))
        logprobs = self._answer.logprobs(step.outputs)
        if logprobs and not deltas:
            deltas.append({})  # the text of these tokens is held back
        choices = [self._choice(delta) for delta in deltas]
        if choices:
            choices[-1]["logprobs"] = logprobs
        if step.outputs[-1].finish_reason is not None:
            reason = _finish_reason(self._generation, has_calls=self._reader.has_calls)
            choices.append(self._choice({}, reason))
        return choices

    def _choice(self, delta: MessageDelta, reason: ChatFinishReason | None = None) -> ChatChoiceDelta:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _finish_reason(generation: Generation, *, has_calls: bool) -> ChatFinishReason:
    reason = finish_reason(generation)
    return "tool_calls" if has_calls and reason == "stop" else reason


def _delta(delta: Part) -> MessageDelta:
    if isinstance(delta, ThoughtDelta):
        return {"reasoning_content": delta.text, "reasoning": delta.text}
    if isinstance(delta, ContentDelta):
        return {"content": delta.text}
    if isinstance(delta, CallDelta):
        return {
            "tool_calls": [
                {
                    "index": delta.index,
                    "id": delta.id,
                    "type": "function",
                    "function": {"name": delta.name, "arguments": ""},
                }
            ]
        }
    return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]}
