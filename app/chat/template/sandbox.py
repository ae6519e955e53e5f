"""Renders chat templates as Hugging Face's transformers does, and tells a template's text from contents.

The environment is that of ``transformers/utils/chat_template_utils.py``: Jinja's immutable sandbox,
``trim_blocks``, ``lstrip_blocks``, loop controls, ``raise_exception``, ``strftime_now``, a ``tojson``
without HTML escapes, and ``{% generation %}`` blocks, which mark an assistant's text for training.
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

MAX_CHARACTERS = 16 << 20  # of a rendering: more than any model's context holds


class TemplateRefusal(Exception):
    """The template itself refuses the messages (``raise_exception``); the message is the template's."""


class TemplateFailure(Exception):
    """The template cannot be compiled or rendered; the message says why."""


class TemplateTimeout(TemplateFailure):
    """The template took longer than it may."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A rendered template.

    Attributes:
        text: What the template writes.
        traced: The text that ``contents`` is about. It is ``text``, save for a template that does with
            a content what stand-ins of its characters cannot show.
        contents: Begin and end of each stretch of ``traced`` that comes from a content, in order.
    """

    text: str
    traced: str
    contents: tuple[tuple[int, int], ...]


class Sandbox:
    """One compiled template.

    It limits neither time nor memory: a stranger's template belongs in a process of its own.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile a template.

        Args:
            source: A Hugging Face chat template.
            special_tokens: Variables of the template, such as ``bos_token``, and their texts.

        Raises:
            TemplateFailure: It is not a template.
        """
        self._special_tokens = dict(special_tokens)
        self._now = datetime.now()
        self._lock = threading.Lock()  # the clock and the tracer belong to one rendering at a time
        self._tracing_environment = _TracingEnvironment(self._strftime_now)
        environment = _Environment(self._strftime_now)
        try:
            self._template = environment.from_string(source)
            self._tracing_template = self._tracing_environment.from_string(source)
            self.literals = _literals(environment, source)
        except Exception as error:  # compiling a stranger's source may fail in any way
            raise TemplateFailure(_in_words(error)) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool,
    ) -> Rendering:
        """Render the template, once with the contents and once with stand-ins for their characters.

        Args:
            messages: The turns; every text in them but the role's is a content.
            tools: The functions that the model may call; every text in them is a content.
            add_generation_prompt: Whether to end with the beginning of the assistant's turn.

        Raises:
            TemplateRefusal: The template refuses the messages.
            TemplateFailure: It fails in another way.
        """
        variables = {
            "documents": None,
            **self._special_tokens,
            "add_generation_prompt": add_generation_prompt,
        }
        plain = {"messages": [dict(m) for m in messages], "tools": [dict(t) for t in tools] or None}
        tracer = Tracer()
        with self._lock:
            self._now = datetime.now()
            self._tracing_environment.tracer = tracer
            try:
                text = self._template.render(variables, **plain)
            except TemplateRefusal:
                raise
            except Exception as error:  # a stranger's template may fail in any way
                raise TemplateFailure(_in_words(error)) from error
            if len(text) > MAX_CHARACTERS:
                raise TemplateFailure(f"it writes more than {MAX_CHARACTERS:,} characters")
            try:
                stand_ins = self._tracing_template.render(variables, **_marked(messages, tools, tracer))
            except TooManyCharacters as error:
                raise TemplateRefusal(f"the messages have {error}") from error
            except Exception as error:
                raise TemplateFailure(f"its contents cannot be traced: {_in_words(error)}") from error
        return Rendering(text, tracer.plain(stand_ins), tuple(tracer.spans(stand_ins)))

    def _strftime_now(self, form: str) -> str:
        # Both renderings of the messages happen at the same time.
        return self._now.strftime(form)


def _marked(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], tracer: Tracer
) -> dict[str, Any]:
    def mark(value: Any) -> Any:
        if isinstance(value, str):
            return tracer.mark(value)
        if isinstance(value, Mapping):
            return {mark(key): mark(inner) for key, inner in value.items()}
        return list(map(mark, value)) if isinstance(value, list) else value

    turns = [{key: value if key == "role" else mark(value) for key, value in m.items()} for m in messages]
    return {"messages": turns, "tools": list(map(mark, tools)) or None}


def _literals(environment: jinja2.Environment, source: str) -> list[str]:
    """The texts that stand in the template itself."""
    tree = environment.parse(source)
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    return texts + [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]


def _in_words(error: Exception) -> str:
    line = " ".join(str(error).split())
    return f"{type(error).__name__}: {line}"[:300] if line else type(error).__name__


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusal(str(message))


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
    """``{% generation %}…{% endgeneration %}``: its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox as transformers sets it up."""

    def __init__(self, strftime_now: Callable[[str], str]) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = strftime_now


class _TracingCode(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """``a ~ b``, which Jinja joins without asking the environment."""
        self.write("environment.tracer.trace(")
        super().visit_Concat(node, frame)
        self.write(")")


class _TracingEnvironment(_Environment):
    """Makes every text that holds stand-ins a TracedText again, after operations that forget what it was."""

    code_generator_class = _TracingCode
    intercepted_binops = frozenset("%")

    def __init__(self, strftime_now: Callable[[str], str]) -> None:
        super().__init__(strftime_now)
        self.tracer = Tracer()
        self.filters["tojson"] = self._tojson
        self.filters = {name: self._traced(function) for name, function in self.filters.items()}
        self.concat = self._traced(self.concat)  # type: ignore[method-assign]

    def _tojson(self, value: Any, ensure_ascii: bool = False, *arguments: Any, **options: Any) -> str:
        # Stand-ins are no ASCII, whatever they stand for.
        text = _tojson(value, False, *arguments, **options)
        return self.tracer.escape(text) if ensure_ascii else text

    def _traced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def traced(*arguments: Any, **options: Any) -> Any:
            return self.tracer.trace(function(*arguments, **options))

        return traced

    def getattr(self, obj: Any, attribute: str) -> Any:
        """An attribute, or an item, of ``obj``."""
        if isinstance(obj, TracedText) and attribute in ("format", "format_map"):
            return super().getattr(str.__str__(obj), attribute)  # Jinja makes a new str of the same class
        return super().getattr(self.tracer.trace(obj), attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item, or an attribute, of ``obj``."""
        return super().getitem(self.tracer.trace(obj), argument)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """The result of a call in the template."""
        return __self.tracer.trace(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The result of ``left operator right`` in the template."""
        return self.tracer.trace(super().call_binop(context, operator, left, right))
