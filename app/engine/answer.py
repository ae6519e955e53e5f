"""Answers as streams of tokens, and the errors of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from app.engine.sampling.logprobs import Logprobs
from app.engine.sequence import AnswerSequence, FinishReason


class RequestTooLong(ValueError):
    """Prompt and ``max_tokens`` exceed the KV memory of a sequence."""

    def __init__(self, n_prompt: int, max_tokens: int, limit: int) -> None:
        super().__init__(f"{n_prompt} prompt tokens and max_tokens {max_tokens} exceed the limit of {limit}")
        self.n_prompt, self.max_tokens, self.limit = n_prompt, max_tokens, limit


class QueueFull(Exception):
    """The client has its maximum number of running and waiting requests."""


class EngineError(Exception):
    """An answer cannot be completed: a fault, a cancellation, or the end of the engine."""


@dataclass(frozen=True, slots=True)
class Output:
    """A token of an answer, and the text that it completes.

    Attributes:
        token: Token id.
        text: Text of the answer.
        finish_reason: None before the last token.
        logprobs: Log-probabilities, if requested.
        thought: Text of a thought before the answer.
        is_thought: Whether the token belongs to a thought or its marks.
    """

    token: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None
    thought: str = ""
    is_thought: bool = False


# What the engine hands over of a sequence: the outputs of a step, or its end. None ends a
# sequence without outputs.
Result = list[Output] | EngineError | None


class Answer:
    """The answer to one request. Used on the event loop.

    Iterating yields its outputs. ``listen`` passes on those of a step at once, without a task switch.
    """

    def __init__(self, sequence: AnswerSequence, cancel: Callable[[Answer], None]) -> None:
        self.sequence = sequence
        self._cancel = cancel
        self._inbox: asyncio.Queue[Result] = asyncio.Queue()
        self._receive: Callable[[Result], None] = self._inbox.put_nowait

    @property
    def n_prompt(self) -> int:
        """Number of prompt tokens."""
        return len(self.sequence.prompt)

    @property
    def n_cached(self) -> int:
        """Number of prompt tokens from the prefix cache. Valid from the first output on."""
        return self.sequence.n_cached

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the answer. Final at the last output."""
        return self.sequence.detokenizer.stopped_by

    @property
    def n_thought(self) -> int:
        """Number of tokens in thoughts. Final at the last output."""
        return self.sequence.n_thought

    @property
    def prompt_logprobs(self) -> list[Logprobs]:
        """Log-probabilities of all prompt tokens except the first, if requested.

        Valid from the first output on.
        """
        return self.sequence.prompt_logprobs

    def put(self, result: Result) -> None:
        """Pass on the outputs of a step, or the end of the answer."""
        self._receive(result)

    def listen(self, receive: Callable[[Result], None]) -> None:
        """Call ``receive`` with every result, first with those that have arrived."""
        while not self._inbox.empty():
            receive(self._inbox.get_nowait())
        self._receive = receive

    def cancel(self) -> None:
        """End the answer before the next step. No effect on a finished answer."""
        self._cancel(self)

    async def __aiter__(self) -> AsyncIterator[Output]:
        """Yield one Output per token.

        Raises:
            EngineError: The answer cannot be completed.
        """
        while True:
            result = await self._inbox.get()
            if result is None:
                return
            if isinstance(result, EngineError):
                raise result
            for output in result:
                yield output
            if result[-1].finish_reason is not None:
                return


class Computation:
    """A request without outputs: a context, or questions. Used on the event loop."""

    def __init__(self) -> None:
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def put(self, result: Result) -> None:
        """Pass on the end."""
        if self._end.done():  # the waiting task is cancelled
            return
        if isinstance(result, EngineError):
            self._end.set_exception(result)
        else:
            assert result is None, "a computation has no outputs"
            self._end.set_result(None)

    async def wait(self) -> None:
        """Wait for the end.

        Raises:
            EngineError: The computation failed.
        """
        await self._end
