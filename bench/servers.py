"""The measured servers with a common interface: ``start``, ``ask``, ``stop``."""

from __future__ import annotations

import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.client import NO_HEADERS, BenchError, Timing, exchange
from bench.process import ServerProcess, free_port
from bench.prompts import Context, Prompts, Question

# Python of the environment that `make bench OPENVINO=on` installs.
OPENVINO_PYTHON = Path(sys.prefix, "openvino", "bin", "python")
_TOLERANCE = 1  # tokens; servers differ in whether they count the first one


@dataclass(frozen=True)
class Setup:
    """Options of all servers in a run.

    Attributes:
        model: Path of the GGUF file.
        prompts: Renders prompts for the model.
        contexts: Contexts of questions. The first is the default.
        scratch: Folder for log and cache of the server.
        n_threads: Number of compute threads.
        n_slots: Maximum number of requests decoded at once.
        n_ctx: KV cache size of all slots together, in tokens.
        keep_prefixes: Whether the server may store prefixes outside the KV cache.
    """

    model: Path
    prompts: Prompts
    contexts: tuple[Context, ...]
    scratch: Path
    n_threads: int
    n_slots: int = 8
    n_ctx: int = 16384
    keep_prefixes: bool = True


@dataclass(frozen=True)
class Request:
    """A sent request. ``prompt`` is the rendered question, ``n_tokens`` the requested answer length."""

    question: Question
    prompt: str
    n_tokens: int
    timing: Timing


class Server(ABC):
    """A server. Requests ask for greedy answers without penalties, of an exact length."""

    route: str
    ready_route: str

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.url = f"http://127.0.0.1:{free_port()}"
        self._requests: list[Request] = []

    def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            BenchError: The server does not become ready.
        """
        log = self.setup.scratch / "server.log"
        self.process = ServerProcess(self.command(), self.environment(), self.url + self.ready_route, log)

    def stop(self) -> None:
        self.process.stop()

    async def ask(self, question: Question, n_tokens: int, timing: Timing | None = None) -> Timing:
        """Request an answer of ``n_tokens`` and receive it, into ``timing`` if given.

        Raises:
            BenchError: The request failed or the answer is incomplete.
        """
        prompt = self.setup.prompts.render(question)
        request = Request(question, prompt, n_tokens, timing or Timing())
        await exchange(self.url, self.route, self.fields(request), request.timing)
        self.read(request.timing)
        self._requests.append(request)
        return request.timing

    async def post(self, route: str, body: dict[str, Any], headers: Mapping[str, str] = NO_HEADERS) -> Any:
        """Post a JSON body and return the JSON of the response.

        Raises:
            BenchError: The request failed.
        """
        timing = Timing()
        await exchange(self.url, route, body, timing, headers)
        return json.loads(b"".join(part for _, part in timing.received))

    def check(self) -> None:
        """Check the token counts of all prompts and answers.

        Raises:
            BenchError: A count differs from the request, so the figures are not comparable.
        """
        for request in self._requests:
            counted, expected = request.timing.prompt_tokens, self.setup.prompts.n_tokens(request.prompt)
            if abs(counted - expected) > _TOLERANCE:
                raise BenchError(f"{self.route} read {counted} tokens of a prompt of {expected}")
            if abs(request.timing.generated_tokens - request.n_tokens) > _TOLERANCE:
                generated = request.timing.generated_tokens
                raise BenchError(f"{self.route} generated {generated} tokens instead of {request.n_tokens}")

    @abstractmethod
    def command(self) -> list[str]:
        """The command that starts the server."""

    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """Environment variables of the command."""

    @abstractmethod
    def fields(self, request: Request) -> dict[str, Any]:
        """The JSON body of a request."""

    @abstractmethod
    def read(self, timing: Timing) -> None:
        """Fill ``timing`` from the received bytes, which may be incomplete.

        Raises:
            BenchError: The answer ends with an error.
        """


class Tokenstream(Server):
    """The server of this working tree."""

    route = "/token_stream"
    ready_route = "/ready"

    def __init__(self, setup: Setup, **settings: str) -> None:
        super().__init__(setup)
        self._settings = settings

    def command(self) -> list[str]:
        return [sys.executable, "-m", "app", "serve"]

    def environment(self) -> Mapping[str, str]:
        """The settings. Writes the contexts file that they name."""
        setup = self.setup
        contexts_file = setup.scratch / "contexts.toml"
        # A JSON string of plain words is also a TOML string.
        tables = (
            f"[contexts.{c.name}]\nprompt = {json.dumps(c.prompt)}\n"
            + (f"choices = {json.dumps(c.choices)}\n" if c.choices else "")
            for c in setup.contexts
        )
        contexts_file.write_text("".join(tables))
        return {
            "MODEL_PATH": str(setup.model),
            # Tuned settings of this machine are used only if the variable is set.
            "TUNED_FILE": os.environ.get("TUNED_FILE", os.devnull),
            "HTTP_ADDRESS": self.url.removeprefix("http://"),
            "CONTEXTS_FILE": str(contexts_file),
            "CONTEXT_TYPE": setup.contexts[0].name,
            "CACHE_DIR": str(setup.scratch / "cache"),
            "MODEL_THREADS": str(setup.n_threads),
            "MAX_SEQUENCES": str(setup.n_slots),
            "N_CTX": str(setup.n_ctx),
            **({} if setup.keep_prefixes else {"PREFIX_CACHE_MB": "0"}),
            **self._settings,
        }

    def fields(self, request: Request) -> dict[str, Any]:
        """The messages without context and template, which this server applies."""
        messages = [{"role": m.role, "content": m.content} for m in request.question.messages]
        return {
            **({"query": messages[0]["content"]} if len(messages) == 1 else {"messages": messages}),
            "context": request.question.context.name,
            "max_tokens": request.n_tokens,
            "temperature": 0,
            "repetition_penalty": 1,
            "ignore_eos": True,
            "details": True,
        }

    def read(self, timing: Timing) -> None:
        """Text, then a record separator and one JSON object with the token counts."""
        whole = b"".join(body for _, body in timing.received)
        text, separator, figures = whole.partition(b"\n\x1e")
        n_bytes = 0
        for at, body in timing.received:
            if n_bytes < len(text):
                timing.pieces_at.append(at)
            n_bytes += len(body)
        timing.text = text.decode("utf-8", "replace")
        if separator:
            reported = json.loads(figures)
            if "error" in reported:
                raise BenchError(f"{self.route} ended an answer with an error: {reported}")
            timing.prompt_tokens = reported["prompt_tokens"]
            timing.generated_tokens = reported["generated_tokens"]


class CompletionServer(Server):
    """A server with the route ``/completion`` of llama-server."""

    route = "/completion"
    ready_route = "/health"

    def environment(self) -> Mapping[str, str]:
        """Empty: these servers are configured by flags."""
        return {}

    def fields(self, request: Request) -> dict[str, Any]:
        """The rendered prompt. ``top_k`` 1 skips the rest of the sampler chain."""
        return {
            "prompt": request.prompt,
            "n_predict": request.n_tokens,
            "temperature": 0,
            "top_k": 1,
            "repeat_penalty": 1,
            "ignore_eos": True,
            "stream": True,
            "sse_ping_interval": -1,
        }

    def read(self, timing: Timing) -> None:
        """Server-sent events. The last one has the token counts."""
        unread = b""
        for at, body in timing.received:
            *events, unread = (unread + body).split(b"\n\n")
            for event in events:
                data = json.loads(event.removeprefix(b"data: "))
                if "error" in data:
                    raise BenchError(f"{self.route} ended an answer with an error: {data}")
                if data["content"]:
                    timing.pieces_at.append(at)
                    timing.text += data["content"]
                if data["stop"]:
                    timing.prompt_tokens = data["tokens_evaluated"]
                    timing.generated_tokens = data["tokens_predicted"]


class LlamaServer(CompletionServer):
    """llama-server. ``flags`` are added to the common ones."""

    def __init__(self, setup: Setup, program: Path, *flags: str) -> None:
        super().__init__(setup)
        self._program = program
        self._flags = flags

    def command(self) -> list[str]:
        """llama-server with the same threads, slots and KV cache size."""
        setup = self.setup
        return [
            str(self._program),
            *("--model", str(setup.model), "--port", self.url.rpartition(":")[2], "--no-webui"),
            *("--threads", str(setup.n_threads), "--parallel", str(setup.n_slots)),
            *("--ctx-size", str(setup.n_ctx)),
            *(() if setup.keep_prefixes else ("--cache-ram", "0")),
            *self._flags,
        ]


class OpenVINO(CompletionServer):
    """OpenVINO GenAI behind a bare route, with the same threads and slots."""

    def command(self) -> list[str]:
        setup = self.setup
        options = (setup.model, self.url.rpartition(":")[2], setup.n_threads, setup.n_slots)
        return [str(OPENVINO_PYTHON), "-m", "bench.openvino.server", *map(str, options)]
