"""Blocking work that the end of the process interrupts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


async def in_background(function: Callable[[], T]) -> T:
    """Run a function in a daemon thread, with the context variables of the caller.

    A cancelled call returns at once, and its thread goes on until the process ends.

    Raises:
        Exception: Raised by ``function``.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = function()
        except BaseException as error:
            _call(loop, _set_exception, done, error)
        else:
            _call(loop, _set_result, done, result)

    threading.Thread(target=copy_context().run, args=(run,), name="background", daemon=True).start()
    return await done


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    with suppress(RuntimeError):  # the loop is closed: the process is ending
        loop.call_soon_threadsafe(function, *arguments)


def _set_result(done: asyncio.Future[T], result: T) -> None:
    if not done.done():
        done.set_result(result)


def _set_exception(done: asyncio.Future[T], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
