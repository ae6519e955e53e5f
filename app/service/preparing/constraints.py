"""Constraints of answers: of requests, else of contexts."""

from __future__ import annotations

import logging
from typing import Any

from app.config.contexts import Context
from app.engine.llama import Vocab
from app.engine.sampling.grammar import Grammar, GrammarCompiler, GrammarError, enforceable
from app.service.errors import BadRequest
from app.service.preparing.prompts import ChatPrompt, Constraint, JSONSchema, Lark, Prompt, Regex

logger = logging.getLogger("tokenstream.service")


def effective(prompt: Prompt, context: Context | None, constraint: Constraint | None) -> Constraint | None:
    """The constraint of a request, else that of its context, which is for whole answers without tools."""
    if constraint is not None or context is None or not isinstance(prompt, ChatPrompt):
        return constraint
    if prompt.tools is not None or prompt.continues:
        return None
    return _of_context(context)


class Constraints:
    """Compiles constraints for one vocabulary; thread-safe.

    Attributes:
        grammars: The compiler.
    """

    def __init__(self, vocab: Vocab) -> None:
        self.grammars = GrammarCompiler(vocab)

    def grammar(self, constraint: Constraint) -> Grammar:
        """Compile a constraint.

        Raises:
            BadRequest: It is invalid, or no grammar can enforce it.
        """
        if isinstance(constraint, JSONSchema):
            schema = enforced_schema(constraint.schema, constraint.field, exact=constraint.strict)
        try:
            if isinstance(constraint, JSONSchema):
                return self.grammars.json_schema(schema, exact=False)
            if isinstance(constraint, Lark):
                return self.grammars.lark(constraint.grammar)
            return self.grammars.regex(constraint.pattern)
        except GrammarError as error:
            raise BadRequest(f"cannot be enforced: {error}", field=constraint.field) from error

    def check(self, context: Context) -> None:
        """Check the constraint of a context, without the index of the vocabulary, which takes a second.

        Raises:
            BadRequest: It is invalid.
        """
        constraint = _of_context(context)
        try:
            if isinstance(constraint, JSONSchema):
                self.grammars.check_json_schema(constraint.schema)
            elif isinstance(constraint, Regex):
                self.grammars.check_regex(constraint.pattern)
            elif constraint is not None:
                self.grammars.check_lark(constraint.grammar)
        except GrammarError as error:
            assert constraint is not None
            raise BadRequest(f"{constraint.field} cannot be enforced: {error}") from error

    def compile(self, context: Context) -> None:
        """Compile the constraint of a context, so that its first request does not wait.

        Raises:
            BadRequest: It cannot be enforced.
        """
        if (constraint := _of_context(context)) is not None:
            self.grammar(constraint)


def _of_context(context: Context) -> Constraint | None:
    if context.regex is not None:
        return Regex(context.regex, "regex")
    if context.json_schema is not None:
        return JSONSchema(context.json_schema, "json_schema", strict=True)
    return None if context.grammar is None else Lark(context.grammar, "grammar")


def enforced_schema(schema: Any, field: str, *, exact: bool, tool: str | None = None) -> Any:
    """The schema that the grammar enforces. A looser one is logged."""
    try:
        found = enforceable(schema, exact=exact)
    except GrammarError as error:
        of_tool = f"tool {tool!r}: " if tool else ""
        raise BadRequest(f"{of_tool}cannot be enforced: {error}", field=field) from error
    if found.losses:
        logger.info("%s: the answer is not constrained by %s", field, found.lost_keywords)
    return found.schema
