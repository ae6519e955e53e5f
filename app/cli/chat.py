"""``tokenstream chat``: a conversation on the terminal, without a server.

The main thread reads the terminal. The service runs on the event loop of another thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, TimeoutError
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from app.chat.messages import Message
from app.cli.generate import request_of
from app.config.settings import Settings
from app.service import ChatPrompt, ServiceError, Step, UnknownContext, receive
from app.service.start import Start

_HELP = """\
/context        list the contexts
/context NAME   use another context from now on
/new            forget the conversation
/stop           end the running answer; so does Ctrl-C
/quit           end; so does Ctrl-D"""
_POLL_INTERVAL = 0.05  # seconds
_MAX_LINE = 4096  # bytes, as of a terminal
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def chat(settings: Settings, fields: dict[str, Any]) -> None:
    """Read questions and print answers until the input ends.

    Args:
        settings: The model and its defaults.
        fields: Fields of TokenStreamRequest; None: absent.

    Raises:
        UserError: The model cannot be loaded, or an argument is out of range.
    """
    request = request_of({"query": "-", **fields})
    start = Start(settings)
    with start_blocking_portal("asyncio") as portal:
        try:
            context = request.context or settings.context_type
            portal.call(_load, start, context)
            _Conversation(start, portal, context, request.overrides()).run()
        finally:
            portal.call(start.service.close)


async def _load(start: Start, context: str) -> None:
    await start.load(warm={context} & start.service.contexts.keys())


class _Conversation:
    """The turns of a conversation, and the context that precedes them."""

    def __init__(self, start: Start, portal: BlockingPortal, context: str, overrides: dict[str, Any]) -> None:
        self._service = start.service
        self._portal = portal
        self._context = self._checked(context)
        self._overrides = overrides
        self._turns: tuple[Message, ...] = ()
        self._is_terminal = sys.stdin.isatty()
        self._typed: list[str] = []  # lines that were typed during an answer

    def run(self) -> None:
        if self._is_terminal:
            print(f"{self._service.model_name}, context {self._context}. /help lists the commands.")
        for line in self._lines():
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                self._command(*line[1:].split(maxsplit=1))
            elif line:
                self._answer(line)

    def _lines(self) -> Iterator[str]:
        """The lines of the input. A terminal shows a prompt, and has editing and a history of lines."""
        if self._is_terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (changes input())
        while True:
            if self._typed:
                yield self._typed.pop(0)
                continue
            try:
                yield input("> " if self._is_terminal else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                print()
                return

    def _command(self, name: str = "", argument: str = "") -> None:
        if name == "context" and argument:
            try:
                self._context = self._checked(argument.strip())
            except ServiceError as error:
                print(f"error: {error}", file=sys.stderr)
        elif name == "context":
            contexts = self._service.contexts
            print("\n".join(f"{'*' if each == self._context else ' '} {each}" for each in contexts))
        elif name == "new":
            self._turns = ()
        elif name != "stop":  # no answer is running
            print(_HELP)

    def _checked(self, name: str) -> str:
        if name not in self._service.contexts:
            known = ", ".join(self._service.contexts)
            raise UnknownContext(f"context {name!r} is not defined; defined are: {known}")
        return name

    def _answer(self, question: str) -> None:
        """Print the answer. An answer that was stopped stays in the conversation as far as it is."""
        turns = (*self._turns, Message("user", question))
        printer = _Printer(shows_thoughts=self._is_terminal)
        prompt = ChatPrompt(turns, self._context, field="query")
        answer = self._portal.start_task_soon(_generate, self._service, prompt, self._overrides, printer)
        try:
            self._wait(answer)
        except ServiceError as error:
            remedy = "; /new forgets the conversation" if self._turns else ""
            print(f"error: {error}{remedy}", file=sys.stderr)
            return
        finally:
            printer.end()
        self._turns = (*turns, Message("assistant", printer.text, thoughts=printer.thought))

    def _wait(self, answer: Future[None]) -> None:
        """Wait for the end of an answer, or stop it."""
        while True:
            try:
                if self._is_stopped(answer):
                    answer.cancel()
                answer.result(_POLL_INTERVAL)
                return
            except TimeoutError:
                continue
            except CancelledError:
                return
            except KeyboardInterrupt:
                answer.cancel()

    def _is_stopped(self, answer: Future[None]) -> bool:
        if not self._is_terminal or answer.done() or not select.select([sys.stdin], [], [], 0)[0]:
            return False
        line = os.read(sys.stdin.fileno(), _MAX_LINE).decode(errors="replace") or "/quit"  # empty: Ctrl-D
        if line.strip() != "/stop":
            self._typed.append(line.strip())
        return line.strip() in ("/stop", "/quit")


class _Printer:
    """Prints an answer while it is generated, thoughts dimmed."""

    def __init__(self, *, shows_thoughts: bool) -> None:
        self.text = self.thought = ""
        self._shows_thoughts = shows_thoughts
        self._dim, self._plain = ("", "") if os.environ.get("NO_COLOR") else (_DIM, _PLAIN)

    def add(self, _index: int, step: Step) -> None:
        if step.thought and self._shows_thoughts:
            sys.stdout.write(f"{self._dim}{step.thought}{self._plain}")
        if step.text and self.thought and not self.text and self._shows_thoughts:
            sys.stdout.write("\n\n")
        self.thought += step.thought
        self.text += step.text
        sys.stdout.write(step.text)
        sys.stdout.flush()

    def end(self) -> None:
        sys.stdout.write("\n")
        sys.stdout.flush()


async def _generate(service: Any, prompt: ChatPrompt, overrides: dict[str, Any], printer: _Printer) -> None:
    [generation] = await service.generate(prompt, overrides)
    try:
        await receive([generation], printer.add)
    finally:
        generation.close()
