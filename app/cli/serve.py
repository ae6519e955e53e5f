"""``tokenstream serve``: sockets, signals, and a server that answers while the model loads."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from functools import partial
from ipaddress import ip_address
from types import FrameType
from typing import Any, cast

import uvicorn
from prometheus_client import start_http_server
from starlette.applications import Starlette

from app.api.app import create_app
from app.api.http.connection import ConnectionLimits, Connections, protocol
from app.cli.certificate import Certificate, certificate_of
from app.cli.listening import StartupError, listen
from app.cli.renewal import Renewal
from app.config.addresses import split_address
from app.config.errors import UserError
from app.config.settings import Settings
from app.config.unused import unused_variables
from app.machine.descriptors import raised_limit
from app.machine.installation import IS_WHEEL
from app.machine.threads import full_pool
from app.service.start import Start
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import Tracing

logger = logging.getLogger("tokenstream")


# Default of MAX_CONNECTIONS, and open files of the process besides connections.
_MOST_CONNECTIONS = 4096
_OTHER_FILES = 40
# Threads of asyncio.to_thread: loading, short encodings of responses, waiting for the index.
_OTHER_THREADS = 6


class ThreadFailure(UserError):
    """An exception ended the thread of the engine or of the embedding model."""

    exit_status = 3


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status.

    Raises:
        UserError: The server cannot start, or the engine or the embedding model failed.
    """
    faulthandler.enable()  # a crash in native code prints the Python stack
    for message in unused_variables(settings, os.environ):
        logger.warning("%s", message)
    endpoint = settings.otlp_endpoint
    tracing = Tracing(endpoint, settings.instance_label) if endpoint is not None else None
    certificate = certificate_of(settings)
    listener = listen("HTTP_ADDRESS", settings.http_address)
    start = Start(settings)
    if settings.prometheus_http_address is not None:
        _serve_metrics(settings.prometheus_http_address, start.service.metrics)
    _warn_if_open(settings, listener)
    host, port = listener.getsockname()[:2]  # the actual port, if 0 is configured
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # browsers need a concrete address
    scheme = "http" if certificate is None else "https"
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    server = _Server(url, start, certificate, tracing)
    server.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure
    return 0


def _warn_if_open(settings: Settings, listener: socket.socket) -> None:
    if not settings.needs_key and not ip_address(listener.getsockname()[0]).is_loopback:
        logger.warning(
            "HTTP_ADDRESS=%s: other machines can use the server without a key; set API_KEY or API_KEYS",
            settings.http_address,
        )


def _serve_metrics(address: str, metrics: Metrics) -> None:
    listen("PROMETHEUS_HTTP_ADDRESS", address).close()  # same error message for a taken address
    host, port = split_address(address)
    start_http_server(port, host, metrics.registry)


def _connection_limits(settings: Settings) -> ConnectionLimits:
    most = settings.max_connections
    if most is None:
        most = min(_MOST_CONNECTIONS, max(raised_limit() - _OTHER_FILES, 1))
    return ConnectionLimits(
        most, settings.max_connections_per_address, settings.read_timeout, settings.write_timeout
    )


class _Server(uvicorn.Server):
    """uvicorn, while the model loads in the background. After a signal it exits with status 0.

    Attributes:
        failure: The error that ended the server; None after a signal.
    """

    def __init__(
        self, url: str, start: Start, certificate: Certificate | None, tracing: Tracing | None
    ) -> None:
        self.failure: UserError | None = None
        self._url = url
        self._start = start
        self._tracing = tracing
        self._service = start.service
        self._renewal = Renewal(self._service, certificate)
        settings = self._service.settings
        app = create_app(self._service, self._lifespan, tracing)
        app.state.is_stopping = lambda: self.should_exit
        context = None if certificate is None else certificate.context
        config = uvicorn.Config(
            app,
            http=cast(Any, partial(protocol, Connections(_connection_limits(settings)), context)),
            ws="none",  # its connections would leave Connections' count
            timeout_keep_alive=settings.connection_idle,  # type: ignore[arg-type] # a float works
            loop="uvloop" if sys.platform != "win32" else "asyncio",
            log_config=None,
            log_level=None,
            access_log=False,
            timeout_graceful_shutdown=math.ceil(settings.shutdown_grace),
            server_header=False,
        )
        super().__init__(config)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on ``sockets`` until SIGTERM or SIGINT."""
        # After its shutdown uvicorn raises the signal again for the previous handler. An empty handler makes
        # the process exit with status 0.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        super().run(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Check files for changes once per second; uvicorn calls this ten times per second."""
        if counter % 10 == 0:
            self._renewal.check()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Shut down after running answers; a second signal exits immediately."""
        if self.should_exit:
            logger.warning("stopped without waiting")
            os._exit(128 + sig)
        running = self._service.n_unfinished
        if running:
            answers = "an answer" if running == 1 else f"{running} answers"
            grace = self._service.settings.shutdown_grace
            logger.warning("waiting up to %g s for %s; a second signal stops immediately", grace, answers)
        super().handle_exit(sig, frame)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(full_pool(_OTHER_THREADS, "other"))
        loading = asyncio.create_task(self._load())
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await self._service.close()
            if self._tracing is not None:
                await asyncio.to_thread(self._tracing.close)

    async def _load(self) -> None:
        try:
            await self._start.load(on_failure=lambda message: self._fail(ThreadFailure(message)))
        except UserError as error:
            self._fail(error)
        except Exception as error:
            logger.exception("the start failed unexpectedly")
            self._fail(StartupError(f"the start failed: {type(error).__name__}: {error}"))
        else:
            self._announce()
            await self._service.compile_constraints()

    def _fail(self, error: UserError) -> None:
        """Shut down. ``serve`` then raises the error."""
        self.failure = self.failure or error
        self.should_exit = True

    def _announce(self) -> None:
        settings, url = self._service.settings, self._url
        names = ", ".join(entry.name for entry in self._service.models.entries)
        if settings.log_format == "json":
            logger.info("ready: %s answers on %s", names, url)
            return
        lines = [f"\nTokenstream answers with {names} on {url}"]
        chosen = (settings.models, settings.model_path, settings.model_repo, settings.model_file)
        if not any(chosen):
            larger = "tokenstream serve --model qwen3-1.7b" if IS_WHEEL else "make run MODEL=qwen3-1.7b"
            lines += [
                "This is a small model for a first try. A larger one gives better answers:",
                f"  {larger}",
            ]
        lines += [
            f"Open {url} in a browser, or try:",
            f"  curl --no-buffer {url}/token_stream -H 'Content-Type: application/json' "
            '-d \'{"query":"Where is located Paris ?"}\'',
        ]
        print("\n".join(lines), flush=True)
