"""Answers in progress, with their measured times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from app.engine.answer import Answer, Output, Result
from app.engine.sampling.logprobs import Logprobs
from app.engine.sequence import FinishReason
from app.knowledge.chunk import Passage
from app.service.errors import GenerationFailed
from app.service.preparing.choices import Chosen
from app.telemetry.metrics import ModelMetrics

if TYPE_CHECKING:
    from app.service.model.model import Model


@dataclass(frozen=True, slots=True)
class Step:
    """Output of one engine step: tokens, and the text that is final (possibly empty).

    ``thought`` is text of thoughts before the answer.
    """

    outputs: Sequence[Output]

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    @property
    def thought(self) -> str:
        return "".join(output.thought for output in self.outputs)


class Generation:
    """An answer in progress. ``receive`` passes its steps on; ``close`` cancels it.

    Attributes:
        model: The model that generates it.
        prompt: Tokens of the prompt.
        sources: Passages of documents in the prompt, best first.
        n_waiting: New and changed documents that the search did not know.
        chosen: Probabilities of the possible answers, if the context has choices.
        n_cached: Prompt tokens from the prefix cache; final after the first step.
        n_generated: Generated tokens.
        first_token_at, last_token_at: By ``time.perf_counter``; None: no token yet.
        finish_reason: None until the answer is complete.
        is_over: Whether the answer is complete or has failed.
        on_tokens: Called with the number of tokens of each step.
        on_end: Called when the answer is complete.
    """

    def __init__(
        self,
        answer: Answer,
        metrics: ModelMetrics,
        requested_at: float,
        sources: Sequence[Passage] = (),
        n_waiting: int = 0,
        chosen: Chosen | None = None,
        *,
        model: Model,
        logs_text: bool = False,
    ) -> None:
        """``logs_text``: the text is part of the request's log line."""
        self.model = model
        self._answer = answer
        self._metrics = metrics
        self._requested_at = requested_at
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self._logs_text = logs_text
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._has_failed = False
        self.is_over = False
        self.on_tokens: Callable[[int], None] | None = None
        self.on_end: Callable[[Generation], None] | None = None
        self.prompt: Sequence[int] = answer.sequence.prompt
        self.sources = sources
        self.n_waiting = n_waiting
        self.chosen = chosen
        self.n_cached = 0
        self.n_generated = 0
        self.finish_reason: FinishReason | None = None

    @property
    def n_prompt(self) -> int:
        return len(self.prompt)

    @property
    def tokens(self) -> list[int]:
        """Tokens of the prompt and of the complete answer."""
        return self._answer.sequence.tokens

    @property
    def text(self) -> str:
        """The answer so far, without thoughts."""
        return "".join(self._texts)

    @property
    def thought(self) -> str:
        """The thoughts so far."""
        return "".join(self._thoughts)

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the answer. Final at the last step."""
        return self._answer.stopped_by

    @property
    def n_thought(self) -> int:
        """Number of generated tokens in thoughts. Final at the last step."""
        return self._answer.n_thought

    @property
    def prompt_logprobs(self) -> Sequence[Logprobs]:
        """Log-probabilities of all prompt tokens except the first, if requested; final at the first step."""
        return self._answer.prompt_logprobs

    def listen(self, receive: Callable[[Result], None]) -> None:
        """Call ``receive`` with every result of the engine, for ``take``."""
        self._answer.listen(receive)

    def take(self, result: Result) -> Step | None:
        """Record a result. Returns its step; None at the end of an answer without tokens.

        Raises:
            GenerationFailed: The engine failed.
        """
        if isinstance(result, list):
            self._note(result)
            return Step(result)
        self.is_over = True
        if result is not None:
            self._has_failed = True
            raise GenerationFailed(str(result)) from result
        self.n_cached = self._answer.n_cached  # even if no token is generated
        return None

    def _note(self, outputs: Sequence[Output]) -> None:
        now, before = time.perf_counter(), self.last_token_at
        self.last_token_at = now
        self.n_generated += len(outputs)
        if self.on_tokens is not None:
            self.on_tokens(len(outputs))
        if before is None:
            # The answer itself finds the whole prompt in the cache, where the scoring has left it.
            self.n_cached = self._answer.n_cached if self.chosen is None else self.chosen.n_cached
            self.first_token_at = now
            self._metrics.on_first_token(self.time_to_first_token)
        else:
            self._metrics.engine.on_tokens(now - before, len(outputs))
        self._texts += [output.text for output in outputs]
        self._thoughts += [output.thought for output in outputs]
        self.finish_reason = outputs[-1].finish_reason
        if self.finish_reason is not None:
            self.is_over = True
            self._metrics.on_answer(now - self._requested_at)
            if self.on_end is not None:
                self.on_end(self)

    @property
    def time_to_first_token(self) -> float:
        """TTFT in seconds; 0 before the first token."""
        return self.first_token_at - self._requested_at if self.first_token_at is not None else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decode speed without the first token; 0 for fewer than two tokens."""
        if self.first_token_at is None or self.last_token_at is None or self.n_generated < 2:
            return 0.0
        return (self.n_generated - 1) / max(self.last_token_at - self.first_token_at, 1e-9)

    # --- for the record of the request

    @property
    def submitted_at(self) -> float:
        return self._answer.sequence.submitted_at

    @property
    def admitted_at(self) -> float | None:
        """Time of the first assignment of a slot; None while the answer waits."""
        return self._answer.sequence.admitted_at

    @property
    def cache_tier(self) -> str | None:
        """Location of the cached prefix."""
        return self._answer.sequence.cache_tier

    @property
    def outcome(self) -> str:
        """The finish reason, ``error``, or ``cancelled``."""
        if self.finish_reason is not None:
            return self.finish_reason.value
        if self._has_failed:
            return "error"
        return "length" if self.is_over else "cancelled"  # max_tokens is 0, or the client left

    @property
    def logged_text(self) -> str | None:
        """The text so far; None if it is not logged."""
        return self.text if self._logs_text else None

    @property
    def duration(self) -> float:
        """Seconds from the request to the last token so far."""
        return 0.0 if self.last_token_at is None else self.last_token_at - self._requested_at

    def close(self) -> None:
        """Cancel an unfinished answer."""
        if not self.is_over:
            self._answer.cancel()


async def receive(generations: Sequence[Generation], on_step: Callable[[int, Step], None]) -> None:
    """Call ``on_step`` with an index and a step, for every step of several answers, until all are complete.

    The engine's hand-over makes these calls for all requests one after another, so they must be short.

    Raises:
        GenerationFailed: The engine failed.
        Exception: ``on_step`` failed.
    """
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(index: int, result: Result) -> None:
        if done.done():  # failed, or the waiting task is cancelled
            return
        try:
            if step := generations[index].take(result):
                on_step(index, step)
        except Exception as error:  # ends this request and no other
            done.set_exception(error)
        else:
            if generations[index].is_over and all(generation.is_over for generation in generations):
                done.set_result(None)

    for index, generation in enumerate(generations):
        generation.listen(partial(take, index))
    await done
