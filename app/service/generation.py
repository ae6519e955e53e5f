"""Answers in progress, with their measured times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from app.engine.answer import Answer, EngineError, Output
from app.engine.sampling.logprobs import Logprobs
from app.engine.sequence import FinishReason
from app.knowledge.chunk import Passage
from app.service.errors import GenerationFailed
from app.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Step:
    """Output of one engine step: tokens, and the text that is final (possibly empty)."""

    outputs: Sequence[Output]

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)


class Generation:
    """An answer in progress. Iterating yields its steps; ``close`` cancels it.

    Attributes:
        prompt: Tokens of the prompt.
        sources: Passages of documents in the prompt, best first.
        n_cached: Prompt tokens from the prefix cache; final after the first step.
        n_generated: Generated tokens.
        finish_reason: None until the answer is complete.
    """

    def __init__(
        self, answer: Answer, metrics: Metrics, requested_at: float, sources: Sequence[Passage] = ()
    ) -> None:
        self._answer = answer
        self._metrics = metrics
        self._requested_at = requested_at
        self._first_token_at: float | None = None
        self._last_token_at = requested_at
        self._is_over = False
        self.prompt: Sequence[int] = answer.sequence.prompt
        self.sources = sources
        self.n_cached = 0
        self.n_generated = 0
        self.finish_reason: FinishReason | None = None

    @property
    def n_prompt(self) -> int:
        return len(self.prompt)

    @property
    def prompt_logprobs(self) -> Sequence[Logprobs]:
        """Log-probabilities of all prompt tokens except the first, if requested; final at the first step."""
        return self._answer.prompt_logprobs

    async def __aiter__(self) -> AsyncIterator[Step]:
        """Yield the output of every engine step.

        Raises:
            GenerationFailed: The engine failed.
        """
        try:
            async for outputs in self._answer.steps():
                self._note(outputs)
                yield Step(outputs)
        except EngineError as error:
            self._is_over = True
            raise GenerationFailed(str(error)) from error
        self._is_over = True
        self.n_cached = self._answer.n_cached  # even if no token is generated

    def _note(self, outputs: Sequence[Output]) -> None:
        self._last_token_at = time.perf_counter()
        self.n_generated += len(outputs)
        if self._first_token_at is None:
            self.n_cached = self._answer.n_cached
            self._first_token_at = self._last_token_at
            self._metrics.on_first_token(self.time_to_first_token)
        self.finish_reason = outputs[-1].finish_reason
        if self.finish_reason is not None:
            self._is_over = True
            self._metrics.on_answer(self._last_token_at - self._requested_at)

    @property
    def time_to_first_token(self) -> float:
        """TTFT in seconds; 0 before the first token."""
        return self._first_token_at - self._requested_at if self._first_token_at is not None else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decode speed without the first token; 0 for fewer than two tokens."""
        if self._first_token_at is None or self.n_generated < 2:
            return 0.0
        return (self.n_generated - 1) / max(self._last_token_at - self._first_token_at, 1e-9)

    def close(self) -> None:
        """Cancel an unfinished answer."""
        if not self._is_over:
            self._answer.cancel()


async def together(generations: Sequence[Generation]) -> AsyncIterator[list[tuple[int, Step]]]:
    """Yield the steps of several answers with their indices, one list per engine step.

    Raises:
        GenerationFailed: The engine failed.
    """
    if len(generations) == 1:
        async for step in generations[0]:
            yield [(0, step)]
        return
    inbox: asyncio.Queue[tuple[int, Step | Exception | None]] = asyncio.Queue()

    async def forward(index: int) -> None:
        try:
            async for step in generations[index]:
                inbox.put_nowait((index, step))
        except Exception as error:
            inbox.put_nowait((index, error))
        else:
            inbox.put_nowait((index, None))

    tasks = [asyncio.create_task(forward(index)) for index in range(len(generations))]
    n_running = len(tasks)
    try:
        while n_running:
            received = [await inbox.get()]
            await asyncio.sleep(0)  # the other answers of this step arrive
            while not inbox.empty():
                received.append(inbox.get_nowait())
            steps = []
            for index, item in received:
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    n_running -= 1
                else:
                    steps.append((index, item))
            if steps:
                yield steps
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
