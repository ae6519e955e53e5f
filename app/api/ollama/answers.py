"""Responses of ``/api/chat`` and ``/api/generate``: a JSON body, or lines of JSON."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from app.api.dialect import NDJSON
from app.api.http.answering import StreamedAnswer, WholeAnswer
from app.api.http.early import EarlyFormat
from app.api.http.events import json_line
from app.api.http.sources import headers
from app.api.ollama.errors import ollama_body
from app.api.ollama.replies import Answer, ChosenLogprob, OllamaTokenLogprob, ReplyFunction, ReplyToolCall
from app.api.ollama.requests import AnsweringRequest
from app.service import (
    AnswerReader,
    ContentDelta,
    FinishReason,
    Generation,
    Model,
    Output,
    Step,
    ThoughtDelta,
    ToolUse,
    collect,
    shown,
    token_bytes,
)


def line(data: Any) -> bytes:
    """A line of a stream."""
    return f"{json_line(data)}\n".encode("utf-8", "replace")


def rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def loaded(name: str, reason: Literal["load", "unload"]) -> Answer:
    """The answer to a request without a prompt."""
    return {"model": name, "created_at": _now(), "done": True, "done_reason": reason}


def early(name: str, part: Mapping[str, Any]) -> EarlyFormat:
    """The stream of a model before its answer; ``part``: fields of a line without text.

    Such lines keep the connection alive. Clients accept them: Ollama's own streams have some.
    """
    return EarlyFormat(NDJSON, line(_begun(name) | {**part}), lambda body: body + b"\n")


class OllamaAnswer(ABC):
    """The answer to one request. Its lines have the text in the place of the route."""

    def __init__(
        self, model: Model, body: AnsweringRequest, generation: Generation, tools: ToolUse | None = None
    ) -> None:
        self.generation = generation
        self._model = model
        self._body = body
        self._reader = AnswerReader(model, tools)

    @abstractmethod
    def _part(self, text: str, thought: str = "", calls: Sequence[ReplyToolCall] = ()) -> dict[str, Any]:
        """The fields of a line that have the text, the thought and the tool calls."""

    def line(self, _index: int, step: Step) -> bytes:
        """The line of a step."""
        text, thought = self._read(step)
        logprobs = self._logprobs(step.outputs)
        if not text and not thought and not logprobs:
            return b""
        return line(self._begun() | self._part(text, thought) | logprobs)

    def last_lines(self) -> bytes:
        """The tool calls, then the figures."""
        calls = self._complete_calls()
        before = line(self._begun() | self._part("", calls=calls)) if calls else b""
        return before + line(self._ended() | self._part(""))

    @property
    def keep_alive(self) -> bytes:
        """A line without text."""
        return line(self._begun() | self._part(""))

    async def whole(self) -> Any:
        [answer] = await collect([self.generation])
        text, thought = self._read(Step(answer.outputs)) if answer.outputs else ("", "")
        part = self._part(text, thought, self._complete_calls())
        return self._ended() | part | self._logprobs(answer.outputs)

    def _read(self, step: Step) -> tuple[str, str]:
        """The text and the thought of a step."""
        text = thought = ""
        for delta in self._reader.read(step):
            if isinstance(delta, ThoughtDelta):
                thought += delta.text
            elif isinstance(delta, ContentDelta):
                text += delta.text
        return text, thought

    def _complete_calls(self) -> list[ReplyToolCall]:
        """All calls, without one that ``max_tokens`` or a stop string cut."""
        complete: list[ReplyToolCall] = []
        for index, call in enumerate(self._reader.calls):
            arguments = call.parsed()
            if arguments is not None:
                function: ReplyFunction = {"index": index, "name": call.name, "arguments": arguments}
                complete.append({"id": call.id, "function": function})
        return complete

    def _begun(self) -> dict[str, Any]:
        return _begun(self._model.name)

    def _ended(self) -> dict[str, Any]:
        generation = self.generation
        first = generation.time_to_first_token
        ended: Answer = {
            "model": self._model.name,
            "created_at": _now(),
            "done": True,
            "done_reason": "length" if generation.finish_reason is FinishReason.LENGTH else "stop",
            "total_duration": _nanoseconds(generation.duration),
            "load_duration": 0,
            "prompt_eval_count": generation.n_prompt,
            "prompt_eval_duration": _nanoseconds(first),
            "eval_count": generation.n_generated,
            "eval_duration": _nanoseconds(generation.duration - first),
        }
        return {**ended}

    def _logprobs(self, outputs: Sequence[Output]) -> dict[str, list[ChosenLogprob]]:
        if not self._body.logprobs:
            return {}
        vocab = self._model.vocab

        def entry(token: int, logprob: float) -> OllamaTokenLogprob:
            data = token_bytes(vocab, token)
            return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

        chosen: list[ChosenLogprob] = []
        for output in shown(vocab, outputs):
            if output.logprobs is not None:
                top = [entry(token, logprob) for token, logprob in output.logprobs.top]
                chosen.append({**entry(output.token, output.logprobs.chosen), "top_logprobs": top})
        return {"logprobs": chosen} if chosen else {}


class ChatAnswer(OllamaAnswer):
    """The answer to a conversation."""

    def _part(self, text: str, thought: str = "", calls: Sequence[ReplyToolCall] = ()) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thought:
            message["thinking"] = thought
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


class TextAnswer(OllamaAnswer):
    """The answer to a prompt."""

    def _part(self, text: str, thought: str = "", calls: Sequence[ReplyToolCall] = ()) -> dict[str, Any]:
        assert not calls  # the prompt has no tools
        return {"response": text, "thinking": thought} if thought else {"response": text}


def respond(request: Request, answer: OllamaAnswer, *, stream: bool) -> Response:
    if not stream:
        whole = WholeAnswer(request, [answer.generation], answer.whole)
        whole.headers.update(headers(answer.generation))
        return whole
    return StreamedAnswer(
        request,
        [answer.generation],
        answer.line,
        end=answer.last_lines,
        media_type=NDJSON,
        error_part=lambda problem: line(ollama_body(problem)),
        keep_alive=answer.keep_alive,
        headers=headers(answer.generation),
    )


def _begun(name: str) -> dict[str, Any]:
    """Fields of each line before the last one."""
    return {"model": name, "created_at": _now(), "done": False}


def _now() -> str:
    return rfc3339(datetime.now(timezone.utc).timestamp())


def _nanoseconds(seconds: float) -> int:
    return max(round(seconds * 1e9), 0)
