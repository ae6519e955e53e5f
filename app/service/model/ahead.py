"""Prefills the beginning of a conversation's next turn while the server is idle.

Many templates drop the thoughts of past turns, and MODEL_PROMPT_TEMPLATE puts passages only into the last
turn. Then the next prompt is no continuation of the last answer, and would prefill that answer again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from app.chat.tools import CallDelta, ToolCallParser
from app.engine.answer import EngineError
from app.engine.async_engine import AsyncEngine
from app.engine.cache.prefix_tree import n_shared_tokens
from app.machine.threads import full_pool
from app.service.errors import ServiceError
from app.service.model.generation import Generation
from app.service.preparing.preparation import Preparation
from app.service.preparing.prompts import ChatPrompt

logger = logging.getLogger("tokenstream.service")

# Seconds after an answer before a prefill, and between checks of a busy server. Programs send the next turn
# earlier.
_IDLE_SECONDS = 0.5
# Minimum tokens that the next turn would prefill again.
_MIN_TOKENS = 32
# Conversations that wait for an idle server. The oldest one is dropped.
_MOST_WAITING = 8


@dataclass(frozen=True, slots=True)
class _Turn:
    """A completed turn: its prompt, its answer, the tokens of both, and its adapter."""

    prompt: ChatPrompt
    text: str
    thought: str
    tokens: list[int]
    adapter: str


class PrefillAhead:
    """Prefills next turns, the newest conversation first. Used on the event loop.

    A request that arrives ends the prefill before the next step; the computed part stays in the prefix cache.
    """

    def __init__(self, engine: AsyncEngine, preparation: Preparation, is_busy: Callable[[], bool]) -> None:
        """``is_busy``: whether a request runs or waits."""
        self._engine = engine
        self._preparation = preparation
        self._is_busy = is_busy
        self._turns: deque[_Turn] = deque(maxlen=_MOST_WAITING)
        self._task: asyncio.Task[None] | None = None
        self._threads = full_pool(1, "ahead")

    def note(self, prompt: ChatPrompt, adapter: str, generation: Generation) -> None:
        """Note a complete answer. Its next turn is prefilled later."""
        turn = _Turn(prompt, generation.text, generation.thought, generation.tokens, adapter)
        self._turns.append(turn)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop, before the models are freed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await asyncio.to_thread(self._threads.shutdown)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(_IDLE_SECONDS)
        while self._turns:
            if self._is_busy():
                await asyncio.sleep(_IDLE_SECONDS)
                continue
            turn = self._turns.pop()
            try:
                if prefix := await loop.run_in_executor(self._threads, self._prefix, turn):
                    await self._engine.prefill_ahead(prefix, turn.adapter)
            except (ServiceError, EngineError) as error:
                logger.debug("a next turn is not prefilled: %s", error)
            except Exception:
                logger.exception("a next turn cannot be prefilled")

    def _prefix(self, turn: _Turn) -> list[int]:
        """The tokens to prefill. Empty: few are missing, or the next prompt cannot be told."""
        if turn.prompt.tools is not None:
            tool_format = self._preparation.tool_format
            parser = ToolCallParser(tool_format, turn.prompt.tools.tools)
            if any(isinstance(delta, CallDelta) for delta in parser.feed(turn.text) + parser.finish()):
                return []  # results of the calls continue the answer
        prefix = self._preparation.next_turn(turn.prompt, turn.text, turn.thought)
        n_missing = len(prefix) - n_shared_tokens(prefix, turn.tokens)
        return prefix if n_missing >= _MIN_TOKENS else []
