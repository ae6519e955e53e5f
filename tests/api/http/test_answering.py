"""Streamed responses that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request
from starlette.types import Message

from app.api.http.answering import StreamedAnswer


@pytest.mark.anyio
async def test_an_unexpected_error_after_the_first_part_is_the_last_part(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        raise RuntimeError("forced")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    answer = StreamedAnswer(
        Request(scope), [], parts(), media_type="text/plain", error_part=lambda problem: problem.kind.encode()
    )
    await answer(scope, receive, send)
    assert [message.get("body") for message in sent] == [None, b"one", b"internal", b""]
    assert "forced" in caplog.text
