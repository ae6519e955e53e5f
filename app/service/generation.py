"""Answers on their way."""

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
    """What one step of the engine added to an answer: tokens, and the text that became certain (or none)."""

    outputs: Sequence[Output]

    @property
    def text(self) -> str:
        """The text."""
        return "".join(output.text for output in self.outputs)


class Generation:
    """An answer on its way: iterate for its steps, ``close`` to leave it; then the figures are final."""

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
        self.sources = sources  # the passages of documents in the prompt, best first
        self.n_cached = 0
        self.n_generated = 0
        self.finish_reason: FinishReason | None = None

    @property
    def n_prompt(self) -> int:
        """How many tokens the prompt has."""
        return len(self.prompt)

    @property
    def prompt_logprobs(self) -> Sequence[Logprobs]:
        """Of every token of the prompt but the first, where asked for; from the first step on."""
        return self._answer.prompt_logprobs

    async def __aiter__(self) -> AsyncIterator[Step]:
        """Yield what every step of the engine adds.

        Raises:
            GenerationFailed: The engine gave the answer up.
        """
        try:
            async for outputs in self._answer.steps():
                self._note(outputs)
                yield Step(outputs)
        except EngineError as error:
            self._is_over = True
            raise GenerationFailed(str(error)) from error
        self._is_over = True
        self.n_cached = self._answer.n_cached  # of a prompt behind which nothing was generated, too

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
        """Seconds from the request to its first token; 0 before that."""
        return self._first_token_at - self._requested_at if self._first_token_at is not None else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: tokens after the first by the seconds that they took; 0 when there are none."""
        if self._first_token_at is None or self.n_generated < 2:
            return 0.0
        return (self.n_generated - 1) / max(self._last_token_at - self._first_token_at, 1e-9)

    def close(self) -> None:
        """Free what the answer holds, if it is not finished."""
        if not self._is_over:
            self._answer.cancel()


async def together(generations: Sequence[Generation]) -> AsyncIterator[list[tuple[int, Step]]]:
    """Yield the steps of several answers with their indices, those of one step of the engine at once.

    Raises:
        GenerationFailed: The engine gave one of them up.
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
        except GenerationFailed as error:
            inbox.put_nowait((index, error))
        else:
            inbox.put_nowait((index, None))

    tasks = [asyncio.create_task(forward(index)) for index in range(len(generations))]
    n_running = len(tasks)
    try:
        while n_running:
            received = [await inbox.get()]
            await asyncio.sleep(0)  # the others of this step are on their way
            while not inbox.empty():
                received.append(inbox.get_nowait())
            steps = []
            for index, what in received:
                if isinstance(what, Exception):
                    raise what
                if what is None:
                    n_running -= 1
                else:
                    steps.append((index, what))
            if steps:
                yield steps
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
