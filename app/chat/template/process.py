"""Renders a stranger's template in a child process, which has neither secrets nor unlimited time and memory.

Jinja's sandbox keeps a template from the interpreter, but not from counting to 10^18 or from filling
memory, often within one call into C that no other thread can end. A process can always be ended. It
stays between renderings: one costs a round trip over a socket, not the start of an interpreter.

Run as ``python -m app.chat.template.process`` this module is the child: requests and replies are lines of
JSON on its standard input and output.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from app.chat.template.sandbox import Rendering, Sandbox, TemplateFailure, TemplateRefusal, TemplateTimeout
from app.machine.child_process import ChildProcess

MEMORY_LIMIT = 512 << 20  # bytes of address space; an idle child has about 40 MB
# Seconds for the child to start, and again to compile the template. Both take 0.1 s, but a machine that
# is busy starting may take its time, and a model must not lose its template to that.
_START_LIMIT = 10
_LONG_REQUEST = 100_000  # bytes for which the time limit is twice what it is for none


class TemplateProcess:
    """A Sandbox in a child process. A child that was ended is replaced at the next rendering."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, time_limit: float) -> None:
        """Start the child and compile the template in it.

        Args:
            source: A Hugging Face chat template.
            special_tokens: Variables of the template, such as ``bos_token``, and their texts.
            time_limit: How long a rendering may take, in seconds; longer for long messages.

        Raises:
            TemplateFailure: It is not a template, or no child can be started.
        """
        self._time_limit = time_limit
        self._template = [source, dict(special_tokens)]
        self._lock = threading.Lock()
        self._child: ChildProcess | None = None
        self.literals: list[str] = []
        self._start()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool,
    ) -> Rendering:
        """Render the template; as :meth:`Sandbox.render`.

        Raises:
            TemplateRefusal: The template refuses the messages.
            TemplateTimeout: It took longer than the limit.
            TemplateFailure: It fails in another way.
        """
        with self._lock:
            child = self._child if self._child and self._child.is_alive else self._start()
            request = ("render", [*messages], [*tools], add_generation_prompt)
            text, traced, contents = self._ask(child, request, self._time_limit)
        spans = tuple((begin, end) for begin, end in contents)
        return Rendering(text, text if traced is None else traced, spans)

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _start(self) -> ChildProcess:
        self._end()
        try:
            child = self._child = ChildProcess("app.chat.template.process")
            child.receive(timeout=_START_LIMIT)  # that it is ready
        except (OSError, EOFError) as error:
            self._end()
            raise TemplateFailure(f"no process for it can be started ({error})") from error
        try:
            self.literals = self._ask(child, ("compile", *self._template), _START_LIMIT)
        except TemplateFailure:
            self._end()
            raise
        return child

    def _ask(self, child: ChildProcess, request: Sequence[Any], time_limit: float) -> Any:
        line = _line(request)
        time_limit *= 1 + len(line) / _LONG_REQUEST
        try:
            child.send(line, timeout=time_limit)
            kind, answer = json.loads(child.receive(timeout=time_limit))
        except TimeoutError as error:
            self._end()
            raise TemplateTimeout(f"it takes longer than {time_limit:.3g} s") from error
        except (OSError, EOFError, ValueError) as error:
            self._end()
            raise TemplateFailure("the process that renders it has ended") from error
        if kind == "refusal":
            raise TemplateRefusal(answer)
        if kind == "failure":
            raise TemplateFailure(answer)
        return answer

    def _end(self) -> None:
        if self._child:
            self._child.close()
            self._child = None


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


# --- the child


def main() -> None:
    """Answer requests until the parent closes the connection."""
    _limit_memory()
    # A service manager may signal all processes; this one is needed until the parent is done.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sandbox: Sandbox | None = None
    _reply("ready", None)
    for line in sys.stdin.buffer:
        # Should the parent die meanwhile, nobody else would end a rendering that never ends.
        signal.alarm(_START_LIMIT)
        command, *arguments = json.loads(line)
        try:
            if command == "compile":
                sandbox = Sandbox(*arguments)
                _reply("literals", sandbox.literals)
            elif sandbox:
                messages, tools, add_generation_prompt = arguments
                rendering = sandbox.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)
                traced = None if rendering.traced == rendering.text else rendering.traced
                _reply("rendering", [rendering.text, traced, rendering.contents])
        except TemplateRefusal as error:
            _reply("refusal", str(error))
        except TemplateFailure as error:
            _reply("failure", str(error))
        except MemoryError:
            _reply("failure", "it needs too much memory")
        signal.alarm(0)


def _limit_memory() -> None:
    if sys.platform == "linux":  # elsewhere the limit is not enforced, or refused
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))


def _reply(kind: str, answer: Any) -> None:
    sys.stdout.buffer.write(_line([kind, answer]))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
