"""Answers as streams of tokens, and the errors of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from app.engine.sampling.logprobs import Logprobs
from app.engine.sequence import FinishReason, Sequence


class RequestTooLong(ValueError):
    """Prompt and ``max_tokens`` exceed the KV memory of a sequence."""

    def __init__(self, n_prompt: int, max_tokens: int, limit: int) -> None:
        super().__init__(f"{n_prompt} prompt tokens and max_tokens {max_tokens} exceed the limit of {limit}")
        self.n_prompt, self.max_tokens, self.limit = n_prompt, max_tokens, limit


class QueueFull(Exception):
    """The maximum number of requests is running or waiting."""


class EngineError(Exception):
    """An answer cannot be completed: a fault, a cancellation, or the end of the engine."""


@dataclass(frozen=True, slots=True)
class Output:
    """A token of an answer, and the text that it completes."""

    token: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


class Answer:
    """The answer to one request, as an asynchronous iterator. Used on the event loop."""

    def __init__(self, sequence: Sequence, cancel: Callable[[Answer], None]) -> None:
        self.sequence = sequence
        self._cancel = cancel
        self._inbox: asyncio.Queue[Output | Exception | None] = asyncio.Queue()

    @property
    def n_prompt(self) -> int:
        """Number of prompt tokens."""
        return len(self.sequence.prompt)

    @property
    def n_cached(self) -> int:
        """Number of prompt tokens from the prefix cache. Valid from the first output on."""
        return self.sequence.n_cached

    @property
    def prompt_logprobs(self) -> list[Logprobs]:
        """Log-probabilities of all prompt tokens except the first, if requested.

        Valid from the first output on.
        """
        return self.sequence.prompt_logprobs

    def put(self, output: Output | Exception | None) -> None:
        """Append an output. An exception, or None after a context, ends the answer."""
        self._inbox.put_nowait(output)

    def cancel(self) -> None:
        """End the answer before the next step. No effect on a finished answer."""
        self._cancel(self)

    async def __aiter__(self) -> AsyncIterator[Output]:
        """Yield one Output per token.

        Raises:
            EngineError: The answer cannot be completed.
        """
        async for outputs in self.steps():
            for output in outputs:
                yield output

    async def steps(self) -> AsyncIterator[list[Output]]:
        """Yield the outputs that have arrived since the last iteration, at least one.

        Raises:
            EngineError: The answer cannot be completed.
        """
        while True:
            received = [await self._inbox.get()]
            while not self._inbox.empty():
                received.append(self._inbox.get_nowait())
            outputs = [output for output in received if isinstance(output, Output)]
            if outputs:
                yield outputs
            last = received[-1]
            if isinstance(last, Exception):
                raise last
            if last is None or last.finish_reason is not None:
                return
