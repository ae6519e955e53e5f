"""Threads on which prompts are prepared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from app.machine.threads import full_pool

P = ParamSpec("P")
T = TypeVar("T")
_SHORT = 2
_LONG_TEXT = 50_000  # characters; longer texts take more than 1 to 2 ms


class PreparingThreads:
    """Templates and the tokenizer run on threads: a long document takes milliseconds.

    Slow preparations have threads of their own, so that they do not delay other requests.
    """

    def __init__(self) -> None:
        self._short = full_pool(_SHORT, "prepare")
        self._long = full_pool(1, "prepare-long")
        self._grammars = full_pool(1, "prepare-grammar")

    async def run(self, n_characters: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that reads a text of ``n_characters``."""
        return await _run(self._long if n_characters > _LONG_TEXT else self._short, function, *args, **kwargs)

    async def compile(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that may compile a grammar."""
        return await _run(self._grammars, function, *args, **kwargs)

    async def close(self) -> None:
        """Wait for running calls and drop the others."""
        for threads in (self._grammars, self._long, self._short):
            await asyncio.to_thread(threads.shutdown, cancel_futures=True)


async def _run(threads: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    call = partial(copy_context().run, partial(function, *args, **kwargs))  # log lines name the request
    return await asyncio.get_running_loop().run_in_executor(threads, call)
