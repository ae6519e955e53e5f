"""Grammars that constrain answers: a mask over the vocabulary for each token.

llguidance (https://github.com/guidance-ai/llguidance) compiles JSON Schema, regular expressions and its
dialect of Lark. It rejects unsupported keywords. A mask takes tenths of a millisecond, because it does not
test each token of the vocabulary as llama.cpp's grammar sampler does.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance import TokenizerWrapper as _Wrapped

from app.engine.llama import Logits, Vocab, mask_logits
from app.engine.sampling.json_schema import schema_defect
from app.engine.sampling.schema_adaptation import Adapted, adapted

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Prefix of control tokens. UTF-8 text never contains this byte, so no grammar matches them as text.
_CONTROL = b"\xff"
_MAX_CACHED_GRAMMARS = 64
_MAX_MESSAGE = 300  # characters
# CPU seconds per mask. All sequences wait for a mask; most take about 0.1 ms.
_MAX_MASK_TIME = 0.5
_MAX_FIRST_MASK_TIME = 0.1  # second computation: the first one also fills caches
# Symbols. The time of a first mask grows with their square: 25 ms for this number, about 1,500 optional
# properties. A size limit rejects the same schemas on every machine; the time limits catch the rest.
_LIMITS = LLParserLimits(max_grammar_size=15_000, verbose_errors=False)


class GrammarError(ValueError):
    """A grammar that cannot be enforced; the message has the reason."""


class Grammar:
    """A compiled grammar; answers can share it."""

    def __init__(self, start: LLMatcher) -> None:
        self._start = start

    def matcher(self) -> Matcher:
        """A matcher at the start of a text."""
        return Matcher(self._start.deep_copy())


class Matcher:
    """State of one answer in its grammar."""

    def __init__(self, native: LLMatcher) -> None:
        self._native = native

    def mask(self, logits: Logits) -> None:
        """Set the logits of forbidden tokens to minus infinity, in place. Shape: (vocabulary,).

        Raises:
            GrammarError: The mask exceeds a limit.
        """
        started = time.thread_time()
        allowed = self._native.compute_bitmask()
        self._check()
        if time.thread_time() - started > _MAX_MASK_TIME:
            raise GrammarError(f"a mask of its tokens took over {_MAX_MASK_TIME} s")
        mask_logits(logits, allowed)

    def accept(self, token: int) -> None:
        """Append a token.

        Raises:
            GrammarError: The grammar forbids the token.
        """
        self._native.consume_token(token)
        self._check()

    def forced(self, limit: int) -> list[int]:
        """Tokens, at most ``limit``, of the only possible next text. A model may tokenize it differently."""
        tokens: list[int] = self._native.compute_ff_tokens()
        return tokens[:limit]

    @property
    def is_finished(self) -> bool:
        """Whether the text is complete and no token can follow."""
        return bool(self._native.is_stopped())

    def _check(self) -> None:
        if self._native.is_error():
            raise GrammarError(_in_one_line(self._native.get_error()))


class FixedAnswer(Grammar):
    """A grammar of one text, in one tokenization."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tuple(tokens)

    def matcher(self) -> Matcher:
        return _FixedMatcher(self._tokens)


class _FixedMatcher(Matcher):
    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._n_accepted = 0

    def mask(self, logits: Logits) -> None:
        logits[:] = -np.inf
        logits[self._tokens[self._n_accepted]] = 0

    def accept(self, token: int) -> None:
        if token != self._tokens[self._n_accepted]:
            raise GrammarError(f"token {token} is not the next one of a fixed answer")
        self._n_accepted += 1

    def forced(self, limit: int) -> list[int]:
        return list(self._tokens[self._n_accepted : self._n_accepted + limit])

    @property
    def is_finished(self) -> bool:
        return self._n_accepted == len(self._tokens)


class GrammarCompiler:
    """Compiles grammars for one vocabulary; thread-safe."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._lock = threading.Lock()
        self._compile = functools.lru_cache(_MAX_CACHED_GRAMMARS)(self._compile_uncached)

    def json_schema(self, schema: Mapping[str, Any] | bool, *, exact: bool = True) -> Grammar:
        """Compile a JSON Schema.

        Args:
            schema: The schema.
            exact: Whether to reject a schema with unsupported keywords. Otherwise they are not enforced.

        Raises:
            GrammarError: The schema is invalid, or has an unsupported keyword.
        """
        return self._compile(_of_json_schema(schema, exact=exact))

    def check_json_schema(self, schema: Mapping[str, Any] | bool) -> None:
        """Check a JSON Schema, without the vocabulary.

        Raises:
            GrammarError: The schema is invalid, or has an unsupported keyword.
        """
        _check_syntax(_of_json_schema(schema, exact=True))

    def check_regex(self, pattern: str) -> None:
        """Check the syntax of a regular expression, without the vocabulary.

        Raises:
            GrammarError: The expression is invalid.
        """
        _check_syntax(LLMatcher.grammar_from_regex(pattern))

    def check_lark(self, grammar: str) -> None:
        """Check the syntax of a grammar, without the vocabulary.

        Raises:
            GrammarError: The grammar is invalid.
        """
        _check_syntax(LLMatcher.grammar_from_lark(grammar))

    def regex(self, pattern: str) -> Grammar:
        """Compile a regular expression; it matches whole texts.

        Raises:
            GrammarError: The expression is invalid, or exceeds finite automata.
        """
        return self._compile(LLMatcher.grammar_from_regex(pattern))

    def lark(self, grammar: str) -> Grammar:
        """Compile a grammar in llguidance's dialect of Lark.

        Raises:
            GrammarError: The grammar is invalid.
        """
        return self._compile(LLMatcher.grammar_from_lark(grammar))

    def _compile_uncached(self, grammar: str) -> Grammar:
        with self._lock:  # one at a time: the first call creates the tokenizer, and each can use a whole core
            try:
                matcher = LLMatcher(self._tokenizer, grammar, limits=_LIMITS)
            except ValueError as error:
                raise GrammarError(_in_one_line(str(error))) from error
        if matcher.is_error():
            raise GrammarError(_in_one_line(matcher.get_error()))
        compiled = Grammar(matcher)
        self._check_first_mask(compiled)
        return compiled

    def _check_first_mask(self, grammar: Grammar) -> None:
        """Compute the first mask, so that a failure rejects the request before the engine gets it."""
        logits = np.zeros(self._vocab.n_tokens, np.float32)
        grammar.matcher().mask(logits)
        if not np.isfinite(logits).any():
            raise GrammarError("no text satisfies it")
        started = time.thread_time()
        grammar.matcher().mask(logits)
        if time.thread_time() - started > _MAX_FIRST_MASK_TIME:
            raise GrammarError(
                f"it is too large: the mask of its first token took over {_MAX_FIRST_MASK_TIME} s"
            )

    @functools.cached_property
    def _tokenizer(self) -> LLTokenizer:
        """llguidance's index of the vocabulary. Takes a second, so it is created on first use."""
        return LLTokenizer(
            _Wrapped(_Tokens(self._vocab)),
            n_vocab=self._vocab.n_tokens,
            eos_token=sorted(self._vocab.end_of_generation),
        )


# Compact JSON needs the fewest tokens and rules out endless whitespace.
_JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}


class _Tokens:
    """A vocabulary with the interface of ``llguidance.TokenizerWrapper``."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        control = {token: text for text, token in vocab.control_tokens.items()}
        self.tokens = [
            _CONTROL + control[token].encode() if token in control else vocab.piece(token)
            for token in range(vocab.n_tokens)
        ]
        self.special_token_ids = sorted(control)
        self.eos_token_id = vocab.eos
        self.bos_token_id = vocab.bos if vocab.bos >= 0 else None

    def __call__(self, text: str) -> list[int]:
        return self._vocab.tokenize(text, parse_special=False)


def _of_json_schema(schema: Mapping[str, Any] | bool, *, exact: bool) -> str:
    schema = enforceable(schema, exact=exact).schema
    text = json.dumps({} if schema is True else schema)
    try:
        return LLMatcher.grammar_from_json_schema(text, overrides=_JSON_STYLE)
    except ValueError as error:
        raise GrammarError(_in_one_line(str(error))) from error


def _check_syntax(grammar: str) -> None:
    if reason := LLMatcher.validate_grammar(grammar):
        raise GrammarError(_in_one_line(reason))


def _in_one_line(message: str) -> str:
    """An error message without line breaks, cut at the maximum length."""
    line = " ".join(message.replace("<non-verbose/>", "").split())
    return line if len(line) <= _MAX_MESSAGE else f"{line[:_MAX_MESSAGE]}…"


def enforceable(schema: Any, *, exact: bool) -> Adapted:
    """A schema with the keywords that a grammar can enforce.

    Args:
        schema: A JSON schema.
        exact: Whether to reject a schema with other keywords.

    Raises:
        GrammarError: No finite text satisfies the schema, it takes too long to compile, or it is not exact.
    """
    found = adapted(schema)
    if found.schema is False:
        raise GrammarError("no JSON text satisfies the schema false")
    if exact and found.losses:
        raise GrammarError(f"unsupported: {found.lost}")
    defect = schema_defect(found.schema)
    if defect is not None:
        raise GrammarError(defect)
    return found
