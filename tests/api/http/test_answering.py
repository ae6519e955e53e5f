"""Streamed responses that fail."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from starlette.requests import Request
from starlette.types import Message

from app.api.http.answering import StreamedAnswer
from app.engine.answer import Answer, Output
from app.engine.detokenizer import Detokenizer
from app.engine.llama import Model
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.samplers import make_sampler
from app.engine.sequence import AnswerSequence
from app.service import Generation, Step
from app.telemetry.metrics import Metrics


@pytest.mark.anyio
async def test_an_unexpected_error_after_the_first_part_is_the_last_part(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    prompt, params = [1], SamplingParams()
    sampler = make_sampler(params, model.vocab, prompt)
    sequence = AnswerSequence(prompt, params, sampler, Detokenizer(model.vocab))
    engine_answer = Answer(sequence, lambda _: None)
    for text in ("one", "two"):
        engine_answer.put([Output(1, text)])

    def encode(_index: int, step: Step) -> bytes:
        if step.text == "two":
            raise RuntimeError("forced")
        return step.text.encode()

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    answer = StreamedAnswer(
        Request(scope),
        [Generation(engine_answer, Metrics("test").models[""], 0.0, model=cast(Any, None))],
        encode,
        media_type="text/plain",
        error_part=lambda problem: problem.kind.encode(),
    )
    await answer(scope, receive, send)
    sampler.close()
    assert [message.get("body") for message in sent] == [None, b"one", b"internal"]
    assert [message.get("more_body") for message in sent] == [None, True, False]
    assert "forced" in caplog.text
