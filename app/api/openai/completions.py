"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from app.api.http.admission import generate, place_of
from app.api.http.answering import WholeAnswer
from app.api.http.body import read_json
from app.api.http.early import EARLY_EVENTS
from app.api.http.problems import invalid
from app.api.openai.answers import CompletionLogprobsWriter, envelope, finish_reason, joined, usage
from app.api.openai.events import event_stream
from app.api.openai.replies import (
    Completion,
    CompletionChoice,
    CompletionChoiceDelta,
    CompletionChunk,
    CompletionLogprobs,
    Usage,
)
from app.api.openai.requests import CompletionRequest
from app.service import (
    Collected,
    Generation,
    Model,
    Service,
    Step,
    TextPrompt,
    best,
    collect,
)


async def completions(request: Request) -> Response:
    body = await read_json(request, CompletionRequest)
    generations = await _start(request, body)
    answer = CompletionAnswer(generations[0].model, body, generations)
    if body.stream:
        return event_stream(request, generations, answer.chunks, answer.last_chunks)
    return WholeAnswer(request, generations, answer.whole)


async def _start(request: Request, body: CompletionRequest) -> list[Generation]:
    """Start the answers, in the order of the prompts."""
    service: Service = request.app.state.service
    n_answers, most = len(body.prompts) * body.n_generated, service.settings.max_concurrent_requests
    if n_answers > most:
        raise invalid(f"{n_answers} answers exceed MAX_CONCURRENT_REQUESTS ({most})", "prompt")
    place_of(request).reserve(n_answers)
    generations: list[Generation] = []
    try:
        for prompt in body.prompts:
            if isinstance(prompt, str):
                text_prompt = TextPrompt(prompt, suffix=body.suffix, model=body.model)
            else:
                text_prompt = TextPrompt(tokens=tuple(prompt), model=body.model)
            generations += await generate(
                request,
                text_prompt,
                body.overrides(),
                n=body.n_generated,
                early=EARLY_EVENTS if body.stream else None,
            )
    except BaseException:
        for generation in generations:
            generation.close()
        raise
    return generations


class CompletionAnswer:
    """The response to one request."""

    def __init__(self, model: Model, body: CompletionRequest, generations: Sequence[Generation]) -> None:
        self._model = model
        self._body = body
        self._generations = generations
        self._head = envelope(model, "cmpl-")
        self._streams = [
            _ChoiceStream(index, self, model, body, generation)
            for index, generation in enumerate(generations)
        ]

    async def whole(self) -> Completion:
        answers = await collect(self._generations)
        n_each = self._body.n_generated
        choices: list[CompletionChoice] = []
        for begin in range(0, len(answers), n_each):
            for answer in best(answers[begin : begin + n_each], self._body.n_choices):
                choices.append(self._choice(len(choices), answer))
        return {**self._head, "object": "text_completion", "choices": choices, "usage": self._usage()}

    def _usage(self) -> Usage:
        return usage(self._generations, n_prompts=len(self._body.prompts))

    def _choice(self, index: int, answer: Collected) -> CompletionChoice:
        logprobs = None
        if self._body.logprobs is not None:
            writer = CompletionLogprobsWriter(self._model.vocab, self._body.logprobs)
            of_prompt = writer.of_prompt(answer.generation) if self._body.echo else None
            logprobs = joined(of_prompt, writer.of_answer(answer.outputs))
        return {
            "index": index,
            "text": self.prompt_text(answer.generation) + answer.text,
            "logprobs": logprobs,
            "finish_reason": finish_reason(answer.generation),
        }

    def prompt_text(self, generation: Generation) -> str:
        """The prompt with ``echo``, else an empty text."""
        if not self._body.echo:
            return ""
        if isinstance(self._body.prompts[0], str):
            return str(self._body.prompts[self._generations.index(generation) // self._body.n_generated])
        vocab = self._model.vocab
        return b"".join(map(vocab.piece, generation.prompt)).decode("utf-8", "replace")

    def chunks(self, index: int, step: Step) -> list[CompletionChunk]:
        """The chunks of a step of one choice."""
        return [self._chunk([choice]) for choice in self._streams[index].choices(step)]

    def last_chunks(self) -> list[CompletionChunk]:
        last = [self._chunk([stream.without_tokens()]) for stream in self._streams if not stream.is_begun]
        if self._body.includes_usage:
            last.append(self._chunk([], self._usage()))
        return last

    def _chunk(self, choices: list[CompletionChoiceDelta], final: Usage | None = None) -> CompletionChunk:
        head = self._head
        chunk: CompletionChunk = {
            "id": head["id"],
            "created": head["created"],
            "model": head["model"],
            "system_fingerprint": head["system_fingerprint"],
            "object": "text_completion",
            "choices": choices,
        }
        if self._body.includes_usage:  # OpenAI sends null before the last chunk
            chunk["usage"] = final
        return chunk


class _ChoiceStream:
    """The chunks of one choice."""

    def __init__(
        self,
        index: int,
        answer: CompletionAnswer,
        model: Model,
        body: CompletionRequest,
        generation: Generation,
    ) -> None:
        self._index = index
        self._answer = answer
        self._generation = generation
        self._writer = None if body.logprobs is None else CompletionLogprobsWriter(model.vocab, body.logprobs)
        self._echo = bool(body.echo)
        self.is_begun = False

    def choices(self, step: Step) -> Sequence[CompletionChoiceDelta]:
        text = step.text
        logprobs: CompletionLogprobs | None = None
        if not self.is_begun:
            self.is_begun = True
            text = self._answer.prompt_text(self._generation) + text
            if self._echo and self._writer is not None:
                logprobs = self._writer.of_prompt(self._generation)
        if self._writer is not None:
            logprobs = joined(logprobs, self._writer.of_answer(step.outputs))
        is_last = step.outputs[-1].finish_reason is not None
        if not (text or is_last or logprobs):
            return ()
        reason = finish_reason(self._generation) if is_last else None
        return ({"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": reason},)

    def without_tokens(self) -> CompletionChoiceDelta:
        """The only chunk of a choice with ``max_tokens`` 0: the prompt."""
        return {
            "index": self._index,
            "text": self._answer.prompt_text(self._generation),
            "logprobs": None if self._writer is None else self._writer.of_prompt(self._generation),
            "finish_reason": "length",
        }
