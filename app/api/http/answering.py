"""Responses that wait for generations. They cancel the generations when the client disconnects."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.dialect import JSON, Problem
from app.api.http import affinity
from app.api.http.errors import internal, respond
from app.api.http.problems import problem_of
from app.api.http.writer import Writer
from app.service import Generation, GenerationFailed, Step
from app.service import receive as receive_steps
from app.telemetry.request import current

logger = logging.getLogger("tokenstream.api")

# Seconds of silence before a keep-alive comment. Proxies close silent connections after 30 to 60 s.
KEEP_ALIVE_AFTER = 10.0
TIMED_OUT = Problem(504, "request_timeout", "the request took longer than REQUEST_TIMEOUT")
SHUTTING_DOWN = Problem(503, "shutting_down", "the server is shutting down")


def deadline_of(scope: Scope) -> float:
    """End of REQUEST_TIMEOUT, as ``anyio.current_time``."""
    deadline: float = scope.get("state", {}).get("deadline", math.inf)
    return deadline


class Answering(Response):
    """A response created from generations. They are closed when it ends."""

    def __init__(self, request: Request, generations: Sequence[Generation], media_type: str) -> None:
        self._request = request
        self._generations = generations
        self.media_type = media_type
        self.status_code = 200
        self.background = None
        self.body = b""
        key = affinity.prefix_key(request.headers, generations[0].prompt)
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no", affinity.HEADER: key})
        # init_headers() has set the length of the empty body.
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response until it is complete or the client disconnects."""
        try:
            with anyio.CancelScope(deadline=deadline_of(scope)) as limit:
                await self._send_while_connected(scope, receive, send)
            if limit.cancelled_caught:
                await self._interrupt(TIMED_OUT, scope, receive, send)
        except asyncio.CancelledError:
            # The server shuts down, and SHUTDOWN_GRACE has passed.
            n_tokens = sum(generation.n_generated for generation in self._generations)
            logger.warning("shutdown interrupted an answer after %d tokens", n_tokens)
            await self._interrupt(SHUTTING_DOWN, scope, receive, send)
        finally:
            for generation in self._generations:
                generation.close()

    async def _send_while_connected(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:

            async def until_disconnected() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(until_disconnected)
            await self._send_all(scope, receive, send)
            tasks.cancel_scope.cancel()

    @abstractmethod
    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; return when it is complete or has failed."""

    @abstractmethod
    async def _interrupt(self, problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
        """End an incomplete response with an error."""


class WholeAnswer(Answering):
    """A JSON body that is sent when the generations are complete."""

    def __init__(
        self, request: Request, generations: Sequence[Generation], body: Callable[[], Awaitable[Any]]
    ) -> None:
        """``body``: receives the generations and returns the body."""
        super().__init__(request, generations, JSON)
        self._make_body = body
        self._is_started = False

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = json.dumps(await self._make_body(), ensure_ascii=False).encode("utf-8", "replace")
        except GenerationFailed as error:
            await respond(scope, problem_of(error))(scope, receive, send)
            return
        headers = [*self.raw_headers, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._is_started = True
        await send({"type": "http.response.body", "body": body})

    async def _interrupt(self, problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_started:
            await respond(scope, problem)(scope, receive, send)


class StreamedAnswer(Answering):
    """A body that is sent while the engine generates.

    The headers are sent with the first part, so a failure before it has its own status.
    """

    def __init__(
        self,
        request: Request,
        generations: Sequence[Generation],
        encode: Callable[[int, Step], bytes],
        *,
        end: Callable[[], bytes] = bytes,
        media_type: str,
        error_part: Callable[[Problem], bytes] | None = None,
        keep_alive: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare the response.

        Args:
            request: The request.
            generations: Sources of the body, closed when the response ends.
            encode: Makes a part of the body, possibly empty, from the index of a generation and its step.
            end: Makes the last part of a complete body.
            media_type: Media type of the body.
            error_part: Encodes the last part of a failed body. None: the body ends without its last chunk,
                which clients detect.
            keep_alive: Sent after KEEP_ALIVE_AFTER seconds of silence.
            headers: Other headers.
        """
        super().__init__(request, generations, media_type)
        self.headers.update(headers or {})
        self._encode = encode
        self._end = end
        self._error_part = error_part
        self._keep_alive = keep_alive
        self._writer: Writer | None = None

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure: Exception | None = None
        async with anyio.create_task_group() as beside:
            async with anyio.create_task_group() as sending:  # ends when the client has read all parts
                writer = self._writer = Writer(send, self.raw_headers, sending)
                if self._keep_alive is not None:
                    beside.start_soon(_stay_alive, writer, self._keep_alive)
                try:
                    await receive_steps(self._generations, partial(self._write, writer))
                    last = self._end()
                except Exception as error:
                    failure = error
            beside.cancel_scope.cancel()
        if failure is None:
            await writer.send(last, more=False)
        elif isinstance(failure, GenerationFailed):
            await self._interrupt(problem_of(failure), scope, receive, send)
        elif writer.is_started:
            logger.error("a response failed after its first part", exc_info=failure)
            await self._interrupt(internal(), scope, receive, send)
        else:
            raise failure  # server_error responds

    def _write(self, writer: Writer, index: int, step: Step) -> None:
        if part := self._encode(index, step):
            writer.write(part)

    async def _interrupt(self, problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
        current().error = problem.kind
        if self._writer is None or not self._writer.is_started:
            await respond(scope, problem)(scope, receive, send)
        elif self._error_part is not None:
            await self._writer.send(self._error_part(problem), more=False)


async def _stay_alive(writer: Writer, part: bytes) -> None:
    while True:
        silence = time.monotonic() - writer.written_at
        if silence >= KEEP_ALIVE_AFTER and not writer.is_blocked:
            writer.write(part)
        else:
            await anyio.sleep(KEEP_ALIVE_AFTER - silence % KEEP_ALIVE_AFTER)
