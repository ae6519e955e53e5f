"""The servers under load, behind one small interface: ``start``, ``ask``, ``stop``."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.client import BenchError, Timing, exchange
from bench.process import ServerProcess, free_port
from bench.prompts import Context, Prompts, Question

_TOLERANCE = 1  # tokens: whether the first one is counted


@dataclass(frozen=True)
class Setup:
    """What all servers of one run have in common.

    Attributes:
        model: The GGUF.
        prompts: Writes the prompts for it.
        contexts: What questions may stand behind; the first is the default.
        scratch: A folder of the server's own, for its log and its cache.
        n_threads: Threads that compute.
        n_slots: Requests decoded at once.
        n_ctx: KV memory of all slots together, in tokens.
        keep_prefixes: Whether prefixes may be kept outside the slots' KV memory.
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
class Asked:
    """One request: ``prompt`` is the question as the model reads it, ``n_tokens`` the answer's length."""

    question: Question
    prompt: str
    n_tokens: int
    timing: Timing


class Server(ABC):
    """A server of one kind; answers are greedy, without penalties, and of exactly the length asked for."""

    route: str
    ready_route: str

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.url = f"http://127.0.0.1:{free_port()}"
        self._asked: list[Asked] = []

    def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            BenchError: It does not get ready.
        """
        log = self.setup.scratch / "server.log"
        self.process = ServerProcess(self.command(), self.environment(), self.url + self.ready_route, log)

    def stop(self) -> None:
        """End the process."""
        self.process.stop()

    async def ask(self, question: Question, n_tokens: int, timing: Timing | None = None) -> Timing:
        """Ask for an answer of ``n_tokens`` and receive it, into ``timing`` where one is given.

        Raises:
            BenchError: The answer is not whole.
        """
        prompt = self.setup.prompts.render(question)
        asked = Asked(question, prompt, n_tokens, timing or Timing())
        await exchange(self.url, self.route, self.fields(asked), asked.timing)
        self.read(asked.timing)
        self._asked.append(asked)
        return asked.timing

    def check(self) -> None:
        """See that every answer was as long as asked for, behind the prompt that was meant.

        Raises:
            BenchError: One was not: the figures could not be compared.
        """
        for asked in self._asked:
            read, meant = asked.timing.prompt_tokens, self.setup.prompts.n_tokens(asked.prompt)
            if abs(read - meant) > _TOLERANCE:
                raise BenchError(f"{self.route} read {read} tokens of a prompt of {meant}")
            if abs(asked.timing.generated_tokens - asked.n_tokens) > _TOLERANCE:
                generated = asked.timing.generated_tokens
                raise BenchError(f"{self.route} generated {generated} tokens instead of {asked.n_tokens}")

    @abstractmethod
    def command(self) -> list[str]:
        """What to run."""

    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """Environment variables of it."""

    @abstractmethod
    def fields(self, asked: Asked) -> dict[str, Any]:
        """The body of a request."""

    @abstractmethod
    def read(self, timing: Timing) -> None:
        """Read pieces, text and figures from what was received, be it whole or cut off."""


class Tokenstream(Server):
    """This project's server, as it is in this tree."""

    route = "/token_stream"
    ready_route = "/ready"

    def __init__(self, setup: Setup, **settings: str) -> None:
        super().__init__(setup)
        self._settings = settings

    def command(self) -> list[str]:
        """``python -m app serve``."""
        return [sys.executable, "-m", "app", "serve"]

    def environment(self) -> Mapping[str, str]:
        """The settings; contexts are in a file of the bench's own."""
        setup = self.setup
        contexts_file = setup.scratch / "contexts.toml"
        # A JSON string of plain words is a TOML string too.
        tables = (f"[contexts.{c.name}]\nprompt = {json.dumps(c.prompt)}\n" for c in setup.contexts)
        contexts_file.write_text("".join(tables))
        return {
            "MODEL_PATH": str(setup.model),
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

    def fields(self, asked: Asked) -> dict[str, Any]:
        """The messages: this server applies context and template itself."""
        messages = [{"role": m.role, "content": m.content} for m in asked.question.messages]
        return {
            **({"query": messages[0]["content"]} if len(messages) == 1 else {"messages": messages}),
            "context": asked.question.context.name,
            "max_tokens": asked.n_tokens,
            "temperature": 0,
            "repetition_penalty": 1,
            "ignore_eos": True,
            "details": True,
        }

    def read(self, timing: Timing) -> None:
        """The text as it came, then a line of figures behind a record separator."""
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
                raise BenchError(f"{self.route} gave an answer up: {reported}")
            timing.prompt_tokens = reported["prompt_tokens"]
            timing.generated_tokens = reported["generated_tokens"]


class LlamaServer(Server):
    """llama-server, with the flags given beyond the common ones."""

    route = "/completion"
    ready_route = "/health"

    def __init__(self, setup: Setup, program: Path, *flags: str) -> None:
        super().__init__(setup)
        self._program = program
        self._flags = flags

    def command(self) -> list[str]:
        """llama-server with equal threads, slots and KV memory."""
        setup = self.setup
        return [
            str(self._program),
            *("--model", str(setup.model), "--port", self.url.rpartition(":")[2], "--no-webui"),
            *("--threads", str(setup.n_threads), "--parallel", str(setup.n_slots)),
            *("--ctx-size", str(setup.n_ctx)),
            *(() if setup.keep_prefixes else ("--cache-ram", "0")),
            *self._flags,
        ]

    def environment(self) -> Mapping[str, str]:
        """Nothing: all is said by flags."""
        return {}

    def fields(self, asked: Asked) -> dict[str, Any]:
        """The rendered prompt; top_k 1 spares this server the rest of its sampler chain."""
        return {
            "prompt": asked.prompt,
            "n_predict": asked.n_tokens,
            "temperature": 0,
            "top_k": 1,
            "repeat_penalty": 1,
            "ignore_eos": True,
            "stream": True,
            "sse_ping_interval": -1,
        }

    def read(self, timing: Timing) -> None:
        """Server-sent events, the last of which has the figures."""
        unread = b""
        for at, body in timing.received:
            *events, unread = (unread + body).split(b"\n\n")
            for event in events:
                data = json.loads(event.removeprefix(b"data: "))
                if "error" in data:
                    raise BenchError(f"{self.route} gave an answer up: {data}")
                if data["content"]:
                    timing.pieces_at.append(at)
                    timing.text += data["content"]
                if data["stop"]:
                    timing.prompt_tokens = data["tokens_evaluated"]
                    timing.generated_tokens = data["tokens_predicted"]
