"""What the engine hands out: answers, token by token, and the ways in which there may be none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from app.engine.sampling.logprobs import Logprobs
from app.engine.sequence import FinishReason, Sequence


class RequestTooLong(ValueError):
    """Prompt and answer do not fit into a sequence's KV memory."""

    def __init__(self, n_prompt: int, max_tokens: int, limit: int) -> None:
        super().__init__(f"{n_prompt} prompt tokens and max_tokens {max_tokens} exceed the limit of {limit}")
        self.n_prompt, self.max_tokens, self.limit = n_prompt, max_tokens, limit


class QueueFull(Exception):
    """As many requests wait as may wait."""


class EngineError(Exception):
    """The engine could not compute an answer; other answers may go on."""


@dataclass(frozen=True, slots=True)
class Output:
    """A token of one answer, and the text that has become certain with it."""

    token: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


class Answer:
    """One request's answer: iterate to receive it, cancel it to leave early."""

    def __init__(self, sequence: Sequence, cancel: Callable[[Answer], None]) -> None:
        self.sequence = sequence
        self._cancel = cancel
        self._inbox: asyncio.Queue[Output | Exception | None] = asyncio.Queue()

    @property
    def n_prompt(self) -> int:
        """How many tokens the prompt has."""
        return len(self.sequence.prompt)

    @property
    def n_cached(self) -> int:
        """How many of them did not have to be computed; known from the first output on."""
        return self.sequence.n_cached

    @property
    def prompt_logprobs(self) -> list[Logprobs]:
        """Of every token of the prompt but the first, where asked for; from the first output on."""
        return self.sequence.prompt_logprobs

    def put(self, output: Output | Exception | None) -> None:
        """Hand in what comes next, None behind a prefix that only was to be prefilled; on the event loop."""
        self._inbox.put_nowait(output)

    def cancel(self) -> None:
        """Free what the answer holds at the next step; nothing happens when it is finished."""
        self._cancel(self)

    async def __aiter__(self) -> AsyncIterator[Output]:
        """Yield an Output for every token.

        Raises:
            EngineError: The answer cannot be completed.
        """
        async for outputs in self.steps():
            for output in outputs:
                yield output

    async def steps(self) -> AsyncIterator[list[Output]]:
        """Yield the outputs of every step, at least one each.

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
