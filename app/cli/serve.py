"""Running the service: checks, socket, loading beside serving, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from types import FrameType

import uvicorn
from prometheus_client import start_http_server
from starlette.applications import Starlette

from app.api.app import create_app
from app.config.contexts import ContextsError, load_contexts
from app.config.settings import Settings, SettingsError, split_address
from app.engine.llama import ModelLoadError
from app.fit import preflight
from app.fit.memory_plan import MemoryPlanError
from app.machine.cores import physical_cores
from app.service import Service, retrieval
from app.telemetry.metrics import Metrics
from app.weights.embedding import resolve_embedding_model
from app.weights.errors import ModelError
from app.weights.model import resolve_model
from app.weights.tokenizer import load_tokenizer_repo

logger = logging.getLogger("tokenstream")


class StartupError(Exception):
    """The server cannot start; the message says why and what to do."""


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status.

    Raises:
        StartupError, SettingsError, ContextsError, ModelError, ModelLoadError, NativeLibraryError:
            The server cannot start; the message is one for the user.
    """
    metrics = Metrics(settings.instance_label)
    service = Service(settings, load_contexts(settings.contexts_file), metrics)
    retrieval.check(settings)
    model = resolve_model(settings)
    embedding_model = resolve_embedding_model(settings) if settings.embeds else None
    tokenizer_repo = load_tokenizer_repo(settings)
    preflight.check(
        model,
        n_threads=settings.model_threads or physical_cores(),
        n_gpu_layers=settings.model_gpu_layers,
        main_gpu=settings.main_gpu,
    )
    listener = _listen("HTTP_ADDRESS", settings.http_address)
    if settings.prometheus_http_address is not None:
        _serve_metrics(settings.prometheus_http_address, metrics)
    host, port = listener.getsockname()[:2]  # port 0 has become a real one
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # any address: a browser needs one
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    load = partial(service.load, model, tokenizer_repo, embedding_model)
    server = _Server(url, settings, service, load)
    server.run(sockets=[listener])
    if isinstance(server.failure, SettingsError):
        raise server.failure
    if server.failure is not None:
        raise StartupError(str(server.failure))
    return 0


def _listen(variable: str, address: str) -> socket.socket:
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartupError(
            f"{variable}={address}: cannot be served there: {error.strerror or error}; "
            f"stop what uses it or set {variable} to another address"
        ) from None
    return listener


def _serve_metrics(address: str, metrics: Metrics) -> None:
    _listen("PROMETHEUS_HTTP_ADDRESS", address).close()  # the same clear message when it is taken
    host, port = split_address(address)
    start_http_server(port, host, metrics.registry)


class _Server(uvicorn.Server):
    """uvicorn, with the model loading beside it, and status 0 after SIGTERM."""

    def __init__(
        self,
        url: str,
        settings: Settings,
        service: Service,
        load: Callable[[], Awaitable[None]],
    ) -> None:
        self.failure: Exception | None = None
        self._url = url
        self._service = service
        self._load_service = load
        config = uvicorn.Config(
            create_app(service, self._lifespan),
            http="httptools",
            loop="uvloop" if sys.platform != "win32" else "asyncio",
            log_config=None,
            log_level=None,
            access_log=settings.log_level == "debug",
            timeout_graceful_shutdown=math.ceil(settings.shutdown_grace),
            server_header=False,
        )
        super().__init__(config)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on ``sockets``; SIGTERM and SIGINT end it in order."""
        # uvicorn raises a signal that it caught once more when it is done, for whoever handled it before.
        # An orderly end is a success here, so the handlers before it do nothing.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        super().run(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let running answers finish; at the second signal end at once."""
        if self.should_exit:
            print("ended at once", file=sys.stderr, flush=True)
            os._exit(128 + sig)
        running = self._service.n_unfinished
        if running:
            answers = "an answer" if running == 1 else f"{running} answers"
            grace = self._service.settings.shutdown_grace
            print(
                f"waiting up to {grace:g} s for {answers}; once more ends at once",
                file=sys.stderr,
                flush=True,
            )
        super().handle_exit(sig, frame)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        loading = asyncio.create_task(self._load())
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await self._service.close()

    async def _load(self) -> None:
        try:
            await self._load_service()
        except (ModelLoadError, ModelError, ContextsError, MemoryPlanError, SettingsError) as error:
            self.failure = error
            self.should_exit = True
            return
        self._announce()

    def _announce(self) -> None:
        settings, url = self._service.settings, self._url
        lines = [f"\nTokenstream answers with {self._service.model_name} on {url}"]
        if settings.model_path is None and settings.model_repo is None and settings.model_file is None:
            lines += [
                "It is a small model, here for a first try; for better answers choose a larger one:",
                "  make run MODEL_REPO=Qwen/Qwen2.5-1.5B-Instruct-GGUF "
                "MODEL_FILE=qwen2.5-1.5b-instruct-q4_k_m.gguf",
            ]
        lines += [
            f"Open {url} in a browser, or try:",
            f"  curl --no-buffer {url}/token_stream -H 'Content-Type: application/json' "
            '-d \'{"query":"Where is located Paris ?"}\'',
        ]
        print("\n".join(lines), flush=True)
