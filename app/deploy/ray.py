"""Replicas of Tokenstream on Ray Serve.

    serve run app.deploy.ray:app
    serve run app.deploy.ray:build REPLICAS=4 CPUS=8 MODEL_REPO=… MODEL_FILE=…

An ``Entrance`` passes each request to an ``Engine``: the ASGI application with its own model and KV cache.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.api.app import create_app, route_table
from app.api.dialect import Problem
from app.config import settings as settings_table
from app.deploy.affinity import routing_key
from app.deploy.metrics import merged
from app.deploy.router import AffinityRouter
from app.service.start import Start
from app.telemetry import logs
from app.telemetry import request as requests
from app.telemetry.request import RequestRecord

logger = logging.getLogger("tokenstream.ray")

_LOST = Problem(503, "generation", "the replica of this request ended; repeat the request", retry_after=1)
# Time in which an answer ends after its client has left.
_LEAVE_SECONDS = 5.0
# Entries of an ASGI scope that requests of all dialects need. Others do not travel between processes.
_SCOPE = (
    "type",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
)


def _portable(scope: Scope) -> dict[str, Any]:
    return {name: scope[name] for name in _SCOPE if name in scope}


def _without(head: Message, *names: bytes) -> Message:
    """The head of a response without some headers. Serve adds its own ``x-request-id`` of the same value."""
    return {**head, "headers": [(name, value) for name, value in head["headers"] if name not in names]}


@serve.deployment(
    max_ongoing_requests=128,  # the engine queues, and rejects beyond MAX_CONCURRENT_REQUESTS
    health_check_period_s=2,
    health_check_timeout_s=10,
    graceful_shutdown_timeout_s=40,
)
class Engine:
    """A server without sockets."""

    async def __init__(self) -> None:  # type: ignore[misc] # Serve awaits it
        settings = settings_table.load(instance_label=serve.get_replica_context().replica_tag)
        logs.configure(settings.log_level, settings.log_format)
        start = Start(settings)
        self._service = start.service
        self._app = create_app(self._service)
        await start.load()
        await self._service.compile_constraints()

    def check_health(self) -> None:
        """Raise if the engine has failed: Serve replaces the replica."""
        if self._service.failure is not None:
            raise RuntimeError(self._service.failure)

    async def respond(self, scope: Scope, body: bytes, *, key: str) -> AsyncIterator[Message]:  # noqa: ARG002 # read by the router
        """The ASGI messages of a response. Closing the iterator disconnects.

        Args:
            scope: ASGI scope of the request.
            body: Complete body.
            key: Key for the router.
        """
        messages: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=16)
        has_left = asyncio.Event()
        arriving: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if arriving:
                return arriving.pop()
            await has_left.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._app({**scope, "app": self._app, "state": {}}, receive, messages.put)
            except Exception:
                # The response has its status already.
                logger.exception("unexpected exception in %s %s", scope["method"], scope["path"])
            await messages.put(None)

        task = asyncio.create_task(run())
        try:
            while (message := await messages.get()) is not None:
                yield message
        finally:
            has_left.set()
            await asyncio.wait([task], timeout=_LEAVE_SECONDS)
            task.cancel()

    async def respond_whole(self, scope: Scope) -> tuple[Message, bytes]:
        """The head and the body of a response to a request without a body."""
        head, *parts = [message async for message in self.respond(scope, b"", key="")]
        return head, b"".join(part.get("body", b"") for part in parts)

    async def __del__(self) -> None:
        if service := getattr(self, "_service", None):
            await service.close()


class _Metrics(Response):
    """The metrics of all engines; INSTANCE_LABEL is the replica."""

    def __init__(self, engines: DeploymentHandle) -> None:
        self._engines, self.background = engines, None

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        scope = _portable(scope)
        # The only format that merges.
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"accept"]
        answers = await self._engines.broadcast("respond_whole", scope).results_async(timeout_s=5)
        head, body = answers[0]
        if head["status"] == 200:
            body = merged(answer.decode() for _, answer in answers).encode()
        await send(_without(head, b"content-length", b"x-request-id"))
        await send({"type": "http.response.body", "body": body})


class _Forwarded(Response):
    """The response of an engine."""

    def __init__(self, engines: DeploymentHandle, entrance: Entrance, body: bytes) -> None:
        self._engines, self._entrance, self._body = engines, entrance, body
        self.background = None

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        key = routing_key(Headers(scope=scope), self._body)
        sent = _portable(scope)
        begun: Message | None = None
        for may_repeat in (True, False):
            stream = self._engines.remote(sent, self._body, key=key)
            try:
                async for message in stream:
                    begun = begun or message
                    await send(message if message is not begun else _without(message, b"x-request-id"))
                return
            except (RayError, RayServeException) as error:
                logger.warning("a replica was lost: %s", type(error).__name__)
                if begun is not None or not may_repeat:
                    await self._end(begun, scope, send)
                    return
            except asyncio.CancelledError:
                stream.cancel()
                raise

    async def _end(self, begun: Message | None, scope: Scope, send: Send) -> None:
        """End a response whose replica was lost with an error of the dialect."""
        requests.begin(RequestRecord(Headers(scope=scope).get("x-request-id", ""), scope["method"]))
        error = self._entrance.table.error_format(scope["method"], scope["path"])
        body = json.dumps(error.body(_LOST))
        if begun is None:
            headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
            await send({"type": "http.response.start", "status": error.status(_LOST), "headers": headers})
            await send({"type": "http.response.body", "body": body.encode()})
            return
        kind = Headers(raw=begun["headers"]).get("content-type", "")
        if kind.startswith("text/event-stream"):
            body = f"data: {body}\n\n"
        elif not kind.startswith("application/x-ndjson"):
            # A client of plain text sees an incomplete body.
            raise ConnectionResetError("the replica of this response ended")
        await send({"type": "http.response.body", "body": body.encode()})


@serve.deployment(max_ongoing_requests=4096)
class Entrance:
    """Receives requests, and passes each to an engine with its prefix."""

    def __init__(self, engines: DeploymentHandle) -> None:
        settings = settings_table.load()
        self.table = route_table(settings)
        self._longest = settings.max_body_bytes
        self._all = engines
        self._engines = engines.options(stream=True, method_name="respond")

    async def __call__(self, request: Request) -> Response:
        """Read the body, up to a byte above MAX_BODY_BYTES: the engine rejects it then."""
        if request.url.path == "/metrics":
            return _Metrics(self._all)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._longest:
                break
        return _Forwarded(self._engines, self, bytes(body[: self._longest + 1]))


def build(arguments: Mapping[str, str]) -> serve.Application:
    """The application for ``serve run app.deploy.ray:build NAME=value …``.

    Args:
        arguments: Settings of Tokenstream, and:
            CPUS: Cores of a replica, also its MODEL_THREADS; default 1.
            REPLICAS: Number of replicas. Default: 1 to MAX_REPLICAS by load.
            MAX_REPLICAS: Default 8.
            ROUTER_SLACK: Requests that a prefix's replica may have above the least loaded one; default 8.
    """
    settings = {name.upper(): str(value) for name, value in arguments.items()}
    n_cpus = int(settings.pop("CPUS", 1))
    n_replicas, most = settings.pop("REPLICAS", None), int(settings.pop("MAX_REPLICAS", 8))
    slack = int(settings.pop("ROUTER_SLACK", 8))
    # Serve's own default for a fixed number is "auto"; each engine decodes some requests at once.
    scaling: dict[str, Any] = (
        {"num_replicas": int(n_replicas)}
        if n_replicas is not None
        else {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=1, max_replicas=most, target_ongoing_requests=8, downscale_delay_s=600
            )
        }
    )
    variables = {"MODEL_THREADS": str(n_cpus), **settings}
    environment = {"env_vars": variables}
    engine = Engine.options(  # type: ignore[attr-defined] # a Deployment
        ray_actor_options={"num_cpus": n_cpus, "runtime_env": environment},
        request_router_config=RequestRouterConfig(
            request_router_class=AffinityRouter, request_router_kwargs={"slack": slack}
        ),
        **scaling,
    )
    entrance = Entrance.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": 0, "runtime_env": environment}
    )
    return entrance.bind(engine.bind())


app = build({})
