"""Renders chat templates as Hugging Face's transformers does, and traces message contents in the result.

The environment is that of ``transformers/utils/chat_template_utils.py``: Jinja's immutable sandbox,
``trim_blocks``, ``lstrip_blocks``, loop controls, ``raise_exception``, ``strftime_now``, a ``tojson``
without HTML escapes, and ``{% generation %}`` blocks (marks for training).
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.chat.template.traced import TooManyCharacters, TracedText, Tracer

# Variables of every rendering, and special tokens. A request must not replace them.
RESERVED = frozenset(
    {
        "add_generation_prompt",
        "bos_token",
        "documents",
        "eos_token",
        "messages",
        "pad_token",
        "tools",
        "unk_token",
    }
)
MAX_CHARACTERS = 16 << 20  # of a rendering; exceeds the context of any model


class TemplateRejection(Exception):
    """The template rejects the messages with ``raise_exception``. The message is the template's."""


class TemplateFailure(Exception):
    """The template cannot be compiled or rendered; the message gives the reason."""


class TemplateTimeout(TemplateFailure):
    """Rendering exceeded the time limit."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A rendered template.

    Attributes:
        text: The rendered text.
        traced: The text that ``contents`` refers to. It equals ``text`` unless the template changes a
            content in a way that tracing cannot follow.
        contents: Begin and end of each span of ``traced`` that comes from a content, in order.
    """

    text: str
    traced: str
    contents: tuple[tuple[int, int], ...]


class Sandbox:
    """One compiled template.

    Time and memory are not limited. Run untrusted templates in a
    :class:`~app.chat.template.process.TemplateProcess`.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile a template.

        Args:
            source: A Hugging Face chat template.
            special_tokens: Variables of the template, such as ``bos_token``, and their texts.

        Raises:
            TemplateFailure: The source cannot be compiled.
        """
        self._special_tokens = dict(special_tokens)
        self._now = datetime.now()
        self._lock = threading.Lock()  # guards the clock and the tracer of the current rendering
        self._tracing_environment = _TracingEnvironment(self._strftime_now)
        environment = _Environment(self._strftime_now)
        try:
            self._template = environment.from_string(source)
            self._tracing_template = self._tracing_environment.from_string(source)
            self.literals = _literals(environment, source)
        except Exception as error:  # an untrusted source may raise any exception
            raise TemplateFailure(_description(error)) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
        add_generation_prompt: bool,
    ) -> Rendering:
        """Render the template twice: with the contents, and with stand-ins for their characters.

        Args:
            messages: The turns. Every string in them except the role is a content.
            tools: Functions that the model may call. Every string in them is a content.
            options: Other variables, not of RESERVED. Every string in them is a content.
            add_generation_prompt: Whether to end with the start of the assistant's turn.

        Raises:
            TemplateRejection: The template rejects the messages.
            TemplateFailure: Rendering failed in another way.
        """
        options = options or {}
        variables = {
            "documents": None,
            **self._special_tokens,
            "add_generation_prompt": add_generation_prompt,
        }
        plain = {
            **options,
            "messages": [dict(m) for m in messages],
            "tools": [dict(t) for t in tools] or None,
        }
        tracer = Tracer()
        with self._lock:
            self._now = datetime.now()
            self._tracing_environment.tracer = tracer
            try:
                text = self._template.render(variables, **plain)
            except TemplateRejection:
                raise
            except Exception as error:  # an untrusted template may raise any exception
                raise TemplateFailure(_description(error)) from error
            if len(text) > MAX_CHARACTERS:
                raise TemplateFailure(f"it writes more than {MAX_CHARACTERS:,} characters")
            try:
                stand_ins = self._tracing_template.render(
                    variables, **_marked(messages, tools, options, tracer)
                )
            except TooManyCharacters as error:
                raise TemplateRejection(f"the messages have {error}") from error
            except Exception as error:
                raise TemplateFailure(f"its contents cannot be traced: {_description(error)}") from error
        return Rendering(text, tracer.plain(stand_ins), tuple(tracer.spans(stand_ins)))

    def _strftime_now(self, form: str) -> str:
        # The time is the same in both renderings of a request.
        return self._now.strftime(form)


def _marked(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    tracer: Tracer,
) -> dict[str, Any]:
    def mark(value: Any) -> Any:
        if isinstance(value, str):
            return tracer.mark(value)
        if isinstance(value, Mapping):
            return {mark(key): mark(inner) for key, inner in value.items()}
        return list(map(mark, value)) if isinstance(value, list) else value

    turns = [{key: value if key == "role" else mark(value) for key, value in m.items()} for m in messages]
    marked = {name: mark(value) for name, value in options.items()}
    return {**marked, "messages": turns, "tools": list(map(mark, tools)) or None}


def _literals(environment: jinja2.Environment, source: str) -> list[str]:
    """Literal texts of the template."""
    tree = environment.parse(source)
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    return texts + [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]


def _description(error: Exception) -> str:
    line = " ".join(str(error).split())
    return f"{type(error).__name__}: {line}"[:300] if line else type(error).__name__


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRejection(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}``: renders its body unchanged."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with the settings of transformers."""

    def __init__(self, strftime_now: Callable[[str], str]) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = strftime_now


class _TracingCode(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """``a ~ b``: Jinja joins strings without a call of the environment."""
        self.write("environment.tracer.trace(")
        super().visit_Concat(node, frame)
        self.write(")")


class _TracingEnvironment(_Environment):
    """Converts strings with stand-ins back to TracedText after operations that return plain strings."""

    code_generator_class = _TracingCode
    intercepted_binops = frozenset("%")

    def __init__(self, strftime_now: Callable[[str], str]) -> None:
        super().__init__(strftime_now)
        self.tracer = Tracer()
        self.filters["tojson"] = self._tojson
        self.filters = {name: self._traced(function) for name, function in self.filters.items()}
        self.concat = self._traced(self.concat)  # type: ignore[method-assign]

    def _tojson(self, value: Any, ensure_ascii: bool = False, *arguments: Any, **options: Any) -> str:
        # Stand-ins of ASCII characters are not ASCII.
        text = _tojson(value, False, *arguments, **options)
        return self.tracer.escape(text) if ensure_ascii else text

    def _traced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def traced(*arguments: Any, **options: Any) -> Any:
            return self.tracer.trace(function(*arguments, **options))

        return traced

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, TracedText) and attribute in ("format", "format_map"):
            return super().getattr(str.__str__(obj), attribute)  # Jinja makes a new str of the same class
        return super().getattr(self.tracer.trace(obj), attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(self.tracer.trace(obj), argument)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        return __self.tracer.trace(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        return self.tracer.trace(super().call_binop(context, operator, left, right))
