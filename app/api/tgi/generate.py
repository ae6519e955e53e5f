"""``POST /generate``, ``/generate_stream`` and ``/``: continue a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from starlette.requests import Request
from starlette.responses import Response

from app.api.http.admission import generate as answers_to
from app.api.http.admission import place_of, use_model
from app.api.http.answering import WholeAnswer
from app.api.http.body import read_json
from app.api.http.early import EARLY_EVENTS
from app.api.http.events import event, event_stream
from app.api.tgi.errors import tgi_body
from app.api.tgi.replies import (
    BestOfSequence,
    Details,
    Generated,
    GenerateResponse,
    PrefillToken,
    StreamDetails,
    StreamResponse,
    Token,
)
from app.api.tgi.requests import CompatGenerateRequest, GenerateRequest
from app.api.tgi.validation import too_long, validated
from app.service import (
    Collected,
    FinishReason,
    Generation,
    Output,
    Service,
    Step,
    TextPrompt,
    TooLong,
    Vocab,
    best,
    collect,
)

_PREFIX = "data:"  # without a space, as in TGI


async def generate(request: Request) -> Response:
    return await _whole(request, await read_json(request, GenerateRequest), in_list=False)


async def generate_stream(request: Request) -> Response:
    return await _streamed(request, await read_json(request, GenerateRequest))


async def compat_generate(request: Request) -> Response:
    """Respond with a stream or a list, by the field ``stream``.

    As in TGI, the default of ``return_full_text`` is true on this route.
    """
    body = await read_json(request, CompatGenerateRequest)
    if body.parameters.return_full_text is None:
        body.parameters.return_full_text = True
    if body.stream:
        return await _streamed(request, body)
    return await _whole(request, body, in_list=True)


@dataclass(frozen=True, slots=True)
class TgiAnswer:
    """Encodes one answer."""

    vocab: Vocab
    body: GenerateRequest
    seed: int | None
    generation: Generation

    def token(self, output: Output) -> Token:
        """A generated token. Its text is empty until its last character is complete."""
        assert output.logprobs is not None
        token = self._token(output.token, output.logprobs.chosen)
        if not token["special"]:
            token["text"] = output.text
        return token

    def _token(self, token: int, logprob: float) -> Token:
        piece = self.vocab.piece(token)
        text = piece.decode("utf-8", "replace") if piece else self.vocab.text(token)
        return {"id": token, "text": text, "logprob": logprob, "special": not piece}

    def top_tokens(self, output: Output) -> list[Token]:
        assert output.logprobs is not None
        return [self._token(token, logprob) for token, logprob in output.logprobs.top]

    def text(self, generated: str) -> str:
        return self.body.inputs + generated if self.body.parameters.return_full_text else generated

    def finish_reason(self) -> FinishReason:
        return self.generation.finish_reason or FinishReason.LENGTH

    def generated(self, answer: Collected) -> Generated:
        generated: Generated = {
            "finish_reason": self.finish_reason().value,
            "generated_tokens": self.generation.n_generated,
            "seed": self.seed,
            "prefill": self._prefill(),
            "tokens": [self.token(output) for output in answer.outputs],
        }
        if self.body.parameters.top_n_tokens:
            generated["top_tokens"] = [self.top_tokens(output) for output in answer.outputs]
        return generated

    def _prefill(self) -> list[PrefillToken]:
        if not self.body.parameters.decoder_input_details:
            return []
        logprobs = [None, *(one.chosen for one in self.generation.prompt_logprobs)]
        tokens = (self._token(token, 0.0) for token in self.generation.prompt)
        return [
            {"id": token["id"], "text": token["text"], "logprob": logprob}
            for token, logprob in zip(tokens, logprobs, strict=True)
        ]

    def stream_details(self) -> StreamDetails:
        return {
            "finish_reason": self.finish_reason().value,
            "generated_tokens": self.generation.n_generated,
            "seed": self.seed,
            "input_length": self.generation.n_prompt,
        }


async def _start(request: Request, body: GenerateRequest, *, is_stream: bool) -> list[TgiAnswer]:
    service: Service = request.app.state.service
    name = request.path_params.get("name")
    model = await use_model(request, TextPrompt(model=name), early=EARLY_EVENTS if is_stream else None)
    valid = validated(body, name, service.settings, model.limits, is_stream=is_stream)
    try:
        generations = await answers_to(
            request, valid.prompt, valid.overrides, constraint=valid.constraint, n=valid.n
        )
    except TooLong:
        n_tokens = len(await service.tokens(valid.prompt, place_of(request)))
        raise too_long(body.parameters, n_tokens, model.limits) from None
    return [
        TgiAnswer(model.vocab, body, valid.seed_of(index), generation)
        for index, generation in enumerate(generations)
    ]


async def _whole(request: Request, body: GenerateRequest, *, in_list: bool) -> Response:
    answers = await _start(request, body, is_stream=False)
    generations = [answer.generation for answer in answers]

    async def make() -> GenerateResponse | list[GenerateResponse]:
        response = _response(answers, await collect(generations))
        return [response] if in_list else response

    return WholeAnswer(request, generations, make)


def _response(answers: Sequence[TgiAnswer], collected: Sequence[Collected]) -> GenerateResponse:
    [chosen] = best(collected, 1)
    encoded = list(zip(answers, collected, strict=True))
    [answer] = [answer for answer, one in encoded if one is chosen]
    response: GenerateResponse = {"generated_text": answer.text(chosen.text)}
    if answer.body.parameters.details or answer.body.parameters.decoder_input_details:
        details = cast(Details, answer.generated(chosen))
        others: list[BestOfSequence] = [
            {"generated_text": other.text(one.text), **other.generated(one)}
            for other, one in encoded
            if one is not chosen
        ]
        if others:
            details["best_of_sequences"] = others
        response["details"] = details
    return response


async def _streamed(request: Request, body: GenerateRequest) -> Response:
    [answer] = await _start(request, body, is_stream=True)
    return event_stream(
        request,
        [answer.generation],
        _Stream(answer).events,
        error_event=lambda problem: event(tgi_body(problem), prefix=_PREFIX),
        keep_alive=b":\n\n",
    )


class _Stream:
    """The events of a stream, one per token."""

    def __init__(self, answer: TgiAnswer) -> None:
        self._answer = answer
        self._text = ""
        self._index = 0

    def events(self, _index: int, step: Step) -> bytes:
        return b"".join(event(self._response(output), prefix=_PREFIX) for output in step.outputs)

    def _response(self, output: Output) -> StreamResponse:
        answer, parameters = self._answer, self._answer.body.parameters
        self._index += 1
        self._text += output.text
        data: StreamResponse = {
            "index": self._index,
            "token": answer.token(output),
            "generated_text": None,
            "details": None,
        }
        if parameters.top_n_tokens:
            data["top_tokens"] = answer.top_tokens(output)
        if output.finish_reason is not None:
            data["generated_text"] = answer.text(self._text)
            if parameters.details:
                data["details"] = answer.stream_details()
        return data
