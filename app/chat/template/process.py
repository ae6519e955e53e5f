"""Renders an untrusted template in a child process without secrets, within limits of time and memory.

Jinja's sandbox protects the interpreter, but limits neither time nor memory. A template can count to 10^18 or
fill memory, often in one C call that no thread can interrupt. The child is reused: a rendering costs a round
trip over a socket, not an interpreter start.

Run as ``python -m app.chat.template.process`` this module is the child.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from app.chat.template.sandbox import Rendering, Sandbox, TemplateFailure, TemplateRejection, TemplateTimeout
from app.machine.child_process import ChildError, ChildProcess, ChildTimeout, serve

MEMORY_LIMIT = 512 << 20  # bytes of address space; an idle child has about 40 MB
_TIME_FACTOR_PER_MEGABYTE = 10.0  # times the time limit, added per MB of messages
_LITERALS_TIME_LIMIT = 10.0  # seconds; long, because a busy machine must not disable the template
_ERRORS = (TemplateRejection, TemplateFailure)


class TemplateProcess:
    """A Sandbox in a child process. If the child has ended, the next rendering starts another one."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, time_limit: float) -> None:
        """Start the child and compile the template in it.

        Args:
            source: A Hugging Face chat template.
            special_tokens: Variables of the template, such as ``bos_token``, and their texts.
            time_limit: Seconds per rendering; more for long messages.

        Raises:
            TemplateFailure: The source cannot be compiled, or the child cannot be started.
        """
        self._time_limit = time_limit
        self._child = ChildProcess(
            "app.chat.template.process", [source, dict(special_tokens)], memory=MEMORY_LIMIT, errors=_ERRORS
        )
        self.literals: list[str] = self._request("literals", time_limit=_LITERALS_TIME_LIMIT)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
        add_generation_prompt: bool,
    ) -> Rendering:
        """Render the template; see :meth:`Sandbox.render`.

        Raises:
            TemplateRejection: The template rejects the messages.
            TemplateTimeout: Rendering exceeded the time limit.
            TemplateFailure: Rendering failed in another way.
        """
        arguments = [*messages], [*tools], {**(options or {})}, add_generation_prompt
        text, traced, contents = self._request("render", *arguments, time_limit=self._time_limit)
        spans = tuple((begin, end) for begin, end in contents)
        return Rendering(text, text if traced is None else traced, spans)

    def close(self) -> None:
        """End the child. Another rendering would start a new one."""
        self._child.stop()

    def _request(self, *request: Any, time_limit: float) -> Any:
        per_megabyte = time_limit * _TIME_FACTOR_PER_MEGABYTE
        try:
            [answer] = self._child.request(*request, seconds=time_limit, seconds_per_megabyte=per_megabyte)
        except ChildTimeout as error:
            raise TemplateTimeout(f"it {error}") from error
        except ChildError as error:
            raise TemplateFailure(f"it {error}") from error
        return answer


# --- the child


def _start(source: str, special_tokens: Mapping[str, str]) -> Callable[..., Iterator[Any]]:
    sandbox = Sandbox(source, special_tokens)

    def handle(command: str, *arguments: Any) -> Iterator[Any]:
        if command == "literals":
            yield sandbox.literals
            return
        messages, tools, options, add_generation_prompt = arguments
        rendering = sandbox.render(
            messages, tools=tools, options=options, add_generation_prompt=add_generation_prompt
        )
        traced = None if rendering.traced == rendering.text else rendering.traced
        yield [rendering.text, traced, rendering.contents]

    return handle


if __name__ == "__main__":
    serve(_start, errors=_ERRORS)
