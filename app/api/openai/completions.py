"""``POST /v1/completions``: a text that the model goes on with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from app.api.http.answering import WholeAnswer
from app.api.http.body import read_json
from app.api.http.problems import invalid
from app.api.openai.answers import (
    Collected,
    CompletionLogprobs,
    Envelope,
    best,
    collect,
    finish_reason,
    joined,
    new_id,
    usage,
)
from app.api.openai.events import event_stream
from app.api.openai.requests import CompletionRequest
from app.service import Generation, Model, Service, ServiceError, TextPrompt, together


async def completions(request: Request) -> Response:
    """Go on with one or several texts."""
    service: Service = request.app.state.service
    body = await read_json(request, CompletionRequest)
    generations = await _start(service, body)
    answer = Completion(service.model, body, generations)
    if body.stream:
        return event_stream(request, generations, answer.chunks())
    return WholeAnswer(request, generations, answer.whole)


async def _start(service: Service, body: CompletionRequest) -> list[Generation]:
    """All answers to the first prompt, then all to the second, and so on."""
    n_answers, most = len(body.prompts) * body.n_generated, service.settings.max_concurrent_requests
    if n_answers > most:
        raise invalid(f"{n_answers} answers are more than may run and wait ({most})", "prompt")
    generations: list[Generation] = []
    try:
        for prompt in body.prompts:
            if isinstance(prompt, str):
                asked = TextPrompt(prompt, suffix=body.suffix)
            else:
                asked = TextPrompt(tokens=tuple(prompt))
            generations += await service.generate(asked, body.overrides(), n=body.n_generated)
    except ServiceError:
        for generation in generations:
            generation.close()
        raise
    return generations


class Completion:
    """One request's answers on their way."""

    def __init__(self, model: Model, body: CompletionRequest, generations: Sequence[Generation]) -> None:
        self._model = model
        self._body = body
        self._generations = generations
        self._envelope = Envelope(new_id("cmpl-"), "text_completion", model)

    async def whole(self) -> dict[str, Any]:
        """The body of the response."""
        answers = await collect(self._generations)
        n_each = self._body.n_generated
        choices: list[dict[str, Any]] = []
        for begin in range(0, len(answers), n_each):
            for answer in best(answers[begin : begin + n_each], self._body.n_choices):
                choices.append(self._choice(len(choices), answer))
        return self._envelope.wrap(choices, usage=self._usage())

    def _usage(self) -> dict[str, Any]:
        return usage(self._generations, n_prompts=len(self._body.prompts))

    def _choice(self, index: int, answer: Collected) -> dict[str, Any]:
        text, logprobs = self._prompt_text(answer.generation), None
        if self._body.logprobs is not None:
            lists = CompletionLogprobs(self._model.vocab, self._body.logprobs)
            of_prompt = lists.of_prompt(answer.generation) if self._body.echo else None
            logprobs = joined(of_prompt, lists.of_answer(answer.outputs))
        return {
            "index": index,
            "text": text + answer.text,
            "logprobs": logprobs,
            "finish_reason": finish_reason(answer.generation),
        }

    def _prompt_text(self, generation: Generation) -> str:
        """The prompt, where the answer is to begin with it."""
        if not self._body.echo:
            return ""
        if isinstance(self._body.prompts[0], str):
            return str(self._body.prompts[self._generations.index(generation) // self._body.n_generated])
        vocab = self._model.vocab
        return b"".join(map(vocab.piece, generation.prompt)).decode("utf-8", "replace")

    async def chunks(self) -> AsyncIterator[list[dict[str, Any]]]:
        """The chunks of every step."""
        n_top = self._body.logprobs
        lists = [CompletionLogprobs(self._model.vocab, n_top or 0) for _ in self._generations]
        is_begun = [False] * len(self._generations)
        async for steps in together(self._generations):
            chunks = []
            for index, step in steps:
                generation, text = self._generations[index], step.text
                logprobs = None
                if not is_begun[index]:
                    is_begun[index] = True
                    text = self._prompt_text(generation) + text
                    if self._body.echo and n_top is not None:
                        logprobs = lists[index].of_prompt(generation)
                if n_top is not None:
                    logprobs = joined(logprobs, lists[index].of_answer(step.outputs))
                is_last = step.outputs[-1].finish_reason is not None
                if text or is_last or logprobs:
                    chunks.append(
                        self._chunk(index, text, logprobs, finish_reason(generation) if is_last else None)
                    )
            if chunks:
                yield chunks
        last = []
        for index, generation in enumerate(self._generations):
            if not is_begun[index]:  # the prompt was all that was wanted
                logprobs = None if n_top is None else lists[index].of_prompt(generation)
                last.append(self._chunk(index, self._prompt_text(generation), logprobs, "length"))
        if self._body.includes_usage:
            last.append(self._envelope.wrap([], usage=self._usage()))
        if last:
            yield last

    def _chunk(
        self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        # A stream that is to end with usage has the field, empty, in every chunk.
        return self._envelope.wrap([choice], **({"usage": None} if self._body.includes_usage else {}))
