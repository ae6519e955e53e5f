"""``POST /generate``, ``/generate_stream`` and ``/``: a text that the model goes on with."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from app.api.http.answering import StreamedAnswer, WholeAnswer
from app.api.http.body import read_json
from app.api.tgi.errors import tgi_body
from app.api.tgi.requests import CompatGenerateRequest, GenerateRequest
from app.api.tgi.validation import too_long, validated
from app.engine.answer import Output
from app.engine.llama import Vocab
from app.engine.sequence import FinishReason
from app.service import Generation, Service, TooLong, together


async def generate(request: Request) -> Response:
    """Answer when the text is whole."""
    return await _whole(request, await read_json(request, GenerateRequest), in_list=False)


async def generate_stream(request: Request) -> Response:
    """Answer token by token."""
    return await _streamed(request, await read_json(request, GenerateRequest))


async def compat_generate(request: Request) -> Response:
    """Answer in either way, by the body's ``stream``; a whole answer is in a list.

    On this route TGI puts the prompt before the answer unless it is told otherwise.
    """
    body = await read_json(request, CompatGenerateRequest)
    if body.parameters.return_full_text is None:
        body.parameters.return_full_text = True
    if body.stream:
        return await _streamed(request, body)
    return await _whole(request, body, in_list=True)


@dataclass(slots=True)
class _Answer:
    """What is known of one answer."""

    vocab: Vocab
    body: GenerateRequest
    seed: int | None
    generation: Generation
    text: str = ""
    tokens: list[dict[str, Any]] = field(default_factory=list)
    top_tokens: list[list[dict[str, Any]]] = field(default_factory=list)
    sum_of_logprobs: float = 0.0

    def take(self, output: Output) -> dict[str, Any]:
        """Take a token in; returns what a stream says of it."""
        assert output.logprobs is not None
        self.text += output.text
        self.sum_of_logprobs += output.logprobs.chosen
        token = self._token(output.token, output.logprobs.chosen)
        if not token["special"]:
            token["text"] = output.text  # a character's last token has its text
        self.tokens.append(token)
        said: dict[str, Any] = {"index": len(self.tokens), "token": token}
        if self.body.parameters.top_n_tokens:
            top = [self._token(other, logprob) for other, logprob in output.logprobs.top]
            self.top_tokens.append(top)
            said["top_tokens"] = top
        return said

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        piece = self.vocab.piece(token)
        text = piece.decode("utf-8", "replace") if piece else self.vocab.text(token)
        return {"id": token, "text": text, "logprob": logprob, "special": not piece}

    @property
    def whole_text(self) -> str:
        """The text, with the prompt where that was asked for."""
        return self.body.inputs + self.text if self.body.parameters.return_full_text else self.text

    @property
    def mean_logprob(self) -> float:
        """By which the best of several answers is chosen."""
        return self.sum_of_logprobs / max(1, len(self.tokens))

    def summary(self) -> dict[str, Any]:
        """How it ended."""
        generation = self.generation
        reason = generation.finish_reason or FinishReason.LENGTH
        return {
            "finish_reason": reason.value,
            "generated_tokens": generation.n_generated,
            "seed": self.seed,
        }

    def details(self) -> dict[str, Any]:
        """All that is known."""
        details = {**self.summary(), "prefill": self._prefill(), "tokens": self.tokens}
        if self.body.parameters.top_n_tokens:
            details["top_tokens"] = self.top_tokens
        return details

    def _prefill(self) -> list[dict[str, Any]]:
        if not self.body.parameters.decoder_input_details:
            return []
        logprobs = [None, *(one.chosen for one in self.generation.prompt_logprobs)]
        tokens = (self._token(token, 0.0) for token in self.generation.prompt)
        return [
            {"id": token["id"], "text": token["text"], "logprob": logprob}
            for token, logprob in zip(tokens, logprobs, strict=True)
        ]


async def _start(request: Request, body: GenerateRequest, *, is_stream: bool) -> list[_Answer]:
    service: Service = request.app.state.service
    model = service.model
    asked = validated(body, service.settings, model.limits, is_stream=is_stream)
    try:
        generations = await service.generate(
            asked.prompt, asked.overrides, constraint=asked.constraint, n=asked.n
        )
    except TooLong:
        n_tokens = len(await service.tokens(asked.prompt))
        raise too_long(body.parameters, n_tokens, model.limits) from None
    return [
        _Answer(model.vocab, body, asked.seed_of(index), generation)
        for index, generation in enumerate(generations)
    ]


async def _whole(request: Request, body: GenerateRequest, *, in_list: bool) -> Response:
    answers = await _start(request, body, is_stream=False)
    generations = [answer.generation for answer in answers]

    async def make() -> Any:
        async for steps in together(generations):
            for index, step in steps:
                for output in step.outputs:
                    answers[index].take(output)
        response = _response(answers)
        return [response] if in_list else response

    return WholeAnswer(request, generations, make)


def _response(answers: Sequence[_Answer]) -> dict[str, Any]:
    best = max(answers, key=lambda answer: answer.mean_logprob)
    others = [answer for answer in answers if answer is not best]
    response: dict[str, Any] = {"generated_text": best.whole_text}
    if best.body.parameters.details or best.body.parameters.decoder_input_details:
        response["details"] = best.details()
        if others:
            response["details"]["best_of_sequences"] = [
                {"generated_text": other.whole_text, **other.details()} for other in others
            ]
    return response


async def _streamed(request: Request, body: GenerateRequest) -> Response:
    [answer] = await _start(request, body, is_stream=True)
    return StreamedAnswer(
        request,
        [answer.generation],
        _events(answer),
        media_type="text/event-stream",
        error_part=lambda problem: event(tgi_body(problem)),
        keep_alive=b":\n\n",
    )


async def _events(answer: _Answer) -> AsyncIterator[bytes]:
    """An event for every token; those of one step are sent at once."""
    async for step in answer.generation:
        events = []
        for output in step.outputs:
            said = {**answer.take(output), "generated_text": None, "details": None}
            if output.finish_reason is not None:
                said["generated_text"] = answer.whole_text
                if answer.body.parameters.details:
                    said["details"] = {**answer.summary(), "input_length": answer.generation.n_prompt}
            events.append(event(said))
        yield b"".join(events)


def event(data: Any) -> bytes:
    """A server-sent event, written as TGI writes it."""
    return f"data:{json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", "replace")
