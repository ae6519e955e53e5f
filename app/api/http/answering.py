"""Responses that wait for the model: they are sent as it generates, and end it when the client goes away."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.http.errors import respond
from app.api.http.problems import Problem, problem_of
from app.service import Generation, GenerationFailed

logger = logging.getLogger("tokenstream.api")

# Seconds of silence after which a stream of events says that it is alive: proxies give up after 30 or 60.
KEEP_ALIVE_AFTER = 10.0
ENDING = Problem(503, "shutting_down", "the server is shutting down")


class Answering(Response):
    """A response that depends on generations, which are freed with it."""

    def __init__(self, request: Request, generations: Sequence[Generation], media_type: str) -> None:
        self._request = request
        self._generations = generations
        self.media_type = media_type
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        # The length is not known yet; init_headers saw an empty body.
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, or stop with it when the client is gone."""
        try:
            async with anyio.create_task_group() as tasks:

                async def until_disconnected() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    tasks.cancel_scope.cancel()

                tasks.start_soon(until_disconnected)
                await self._send_all(scope, receive, send)
                tasks.cancel_scope.cancel()
        except asyncio.CancelledError:
            # The server ends and the time of grace is over.
            n_tokens = sum(generation.n_generated for generation in self._generations)
            logger.warning("an answer was cut off after %d tokens", n_tokens)
            await self._cut_off(scope, receive, send)
        finally:
            for generation in self._generations:
                generation.close()

    @abstractmethod
    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; return when it is whole or cannot be."""

    @abstractmethod
    async def _cut_off(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell the client that the answer ends here, because the server does."""


class WholeAnswer(Answering):
    """A JSON body that is sent when the answer is there."""

    def __init__(
        self, request: Request, generations: Sequence[Generation], body: Callable[[], Awaitable[Any]]
    ) -> None:
        """Prepare the response; ``body`` makes what is sent."""
        super().__init__(request, generations, "application/json")
        self._make_body = body
        self._is_started = False

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = json.dumps(await self._make_body(), ensure_ascii=False).encode("utf-8", "replace")
        except GenerationFailed as error:
            await respond(scope, problem_of(error))(scope, receive, send)
            return
        headers = [*self.raw_headers, (b"content-length", str(len(body)).encode())]
        self._is_started = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _cut_off(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_started:
            await respond(scope, ENDING)(scope, receive, send)


class StreamedAnswer(Answering):
    """Parts that are sent one by one.

    Until the first there is nothing sent, so that a failure by then has a status of its own.
    """

    def __init__(
        self,
        request: Request,
        generations: Sequence[Generation],
        parts: AsyncIterator[bytes],
        *,
        media_type: str,
        error_part: Callable[[Problem], bytes] | None = None,
        keep_alive: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare the response.

        Args:
            request: Whose it is.
            generations: What it depends on.
            parts: The parts of its body, each sent at once.
            media_type: Of the body.
            error_part: Makes the last part of a body that cannot be completed. None: the body is left
                without its end, which tells the client.
            keep_alive: What is sent after ten seconds of silence.
            headers: More of them.
        """
        super().__init__(request, generations, media_type)
        self.headers.update(headers or {})
        self._parts = parts
        self._error_part = error_part
        self._keep_alive = keep_alive
        self._is_started = False
        self._sent_at = 0.0

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._sent_at = time.monotonic()
        async with anyio.create_task_group() as tasks:
            if self._keep_alive is not None:
                tasks.start_soon(self._stay_alive, send, self._keep_alive)
            await self._send_parts(scope, receive, send)
            tasks.cancel_scope.cancel()

    async def _send_parts(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async for part in self._parts:
                await self._send(send, part)
        except GenerationFailed as error:
            if not self._is_started:
                self._is_started = True
                await respond(scope, problem_of(error))(scope, receive, send)
            elif self._error_part is not None:
                await self._send(send, self._error_part(problem_of(error)))
                await send({"type": "http.response.body", "body": b""})
            return
        await self._start(send)
        await send({"type": "http.response.body", "body": b""})

    async def _cut_off(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Without a part for errors the body stays without its end, which shows that it was cut."""
        if not self._is_started:
            await respond(scope, ENDING)(scope, receive, send)
        elif self._error_part is not None:
            await self._send(send, self._error_part(ENDING))
            await send({"type": "http.response.body", "body": b""})

    async def _start(self, send: Send) -> None:
        if not self._is_started:
            self._is_started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

    async def _send(self, send: Send, part: bytes) -> None:
        await self._start(send)
        self._sent_at = time.monotonic()
        await send({"type": "http.response.body", "body": part, "more_body": True})

    async def _stay_alive(self, send: Send, part: bytes) -> None:
        while True:
            silence = time.monotonic() - self._sent_at
            if silence >= KEEP_ALIVE_AFTER:
                await self._send(send, part)
            else:
                await anyio.sleep(KEEP_ALIVE_AFTER - silence)
