"""Answers that keep to a grammar: after every token, the tokens that may follow.

The grammars and their masks are llguidance's (https://github.com/guidance-ai/llguidance): JSON Schema,
regular expressions and its dialect of Lark. It refuses what it cannot keep to, works within limits of its
own, and a mask takes tenths of a millisecond where llama.cpp's sampler walks the whole vocabulary.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance import TokenizerWrapper as _Wrapped
from numpy.typing import NDArray

from app.engine.llama import Vocab
from app.engine.sampling.json_schema import complaint_about

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Texts like this one are no part of a document, so a grammar cannot name a control token by them.
_CONTROL = b"\xff"
_KEPT_GRAMMARS = 64
_LONGEST_COMPLAINT = 300  # characters
# Seconds of a core for one mask, for which every answer waits. Usual ones take a ten-thousandth.
_LONGEST_MASK = 0.5
_LONGEST_FIRST_MASK = 0.1  # when it is computed again: the first time builds what the others use
# Symbols. Time for a first mask grows with their square: this many take 25 ms, which is about 1,500
# properties that may be left out. A limit that is counted refuses the same schemas on every machine; those
# of time are for what it does not foresee.
_LIMITS = LLParserLimits(max_grammar_size=15_000, verbose_errors=False)


class GrammarError(ValueError):
    """A grammar that cannot be kept to; the message says why."""


class Grammar:
    """A compiled grammar, of use to any number of answers."""

    def __init__(self, start: LLMatcher) -> None:
        self._start = start

    def matcher(self) -> Matcher:
        """Begin a text."""
        return Matcher(self._start.deep_copy())


class Matcher:
    """A text that grows within a grammar."""

    def __init__(self, native: LLMatcher) -> None:
        self._native = native

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Forbid, in place, every token that cannot follow; of the shape (vocabulary,).

        Raises:
            GrammarError: What may follow could not be found out within the limits.
        """
        started = time.thread_time()
        bits = np.frombuffer(self._native.compute_bitmask(), np.uint8)
        self._check()
        if time.thread_time() - started > _LONGEST_MASK:
            raise GrammarError("to find out what may follow takes so long that others would wait for it")
        allowed = np.unpackbits(bits, count=len(logits), bitorder="little")
        np.putmask(logits, allowed == 0, -np.inf)

    def accept(self, token: int) -> None:
        """Go on by a token.

        Raises:
            GrammarError: It cannot follow.
        """
        self._native.consume_token(token)
        self._check()

    def forced(self, limit: int) -> list[int]:
        """The tokens, at most ``limit``, of a text that must follow; a model may still cut it otherwise."""
        tokens: list[int] = self._native.compute_ff_tokens()
        return tokens[:limit]

    @property
    def is_finished(self) -> bool:
        """Whether the text is whole and nothing can follow."""
        return bool(self._native.is_stopped())

    def _check(self) -> None:
        if self._native.is_error():
            raise GrammarError(_in_one_line(self._native.get_error()))


class GrammarCompiler:
    """Compiles grammars for one vocabulary; from any thread."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._lock = threading.Lock()
        self._compile = functools.lru_cache(_KEPT_GRAMMARS)(self._compile_anew)

    def json_schema(self, schema: Mapping[str, Any] | bool) -> Grammar:
        """The JSON texts that a schema validates.

        Raises:
            GrammarError: It is no schema, or has a keyword that cannot be kept to.
        """
        if schema is False:
            raise GrammarError("no JSON text satisfies the schema false")
        check_schema(schema)
        text = json.dumps({} if schema is True else schema)
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=_JSON_STYLE)
        except ValueError as error:
            raise GrammarError(_in_one_line(str(error))) from error
        return self._compile(grammar)

    def regex(self, pattern: str) -> Grammar:
        """The texts that a regular expression matches as a whole.

        Raises:
            GrammarError: It is none, or one that needs more than a finite automaton.
        """
        return self._compile(LLMatcher.grammar_from_regex(pattern))

    def lark(self, grammar: str) -> Grammar:
        """The texts of a grammar in llguidance's dialect of Lark.

        Raises:
            GrammarError: It cannot be compiled.
        """
        return self._compile(LLMatcher.grammar_from_lark(grammar))

    def _compile_anew(self, grammar: str) -> Grammar:
        with self._lock:  # one at a time: the first makes the tokenizer, and each may take a whole core
            try:
                matcher = LLMatcher(self._tokenizer, grammar, limits=_LIMITS)
            except ValueError as error:
                raise GrammarError(_in_one_line(str(error))) from error
        if matcher.is_error():
            raise GrammarError(_in_one_line(matcher.get_error()))
        grammar_ = Grammar(matcher)
        self._try(grammar_)
        return grammar_

    def _try(self, grammar: Grammar) -> None:
        """Compute the first mask, for which the engine would wait: what fails there is refused here."""
        logits = np.zeros(self._vocab.n_tokens, np.float32)
        grammar.matcher().mask(logits)
        if not np.isfinite(logits).any():
            raise GrammarError("no text satisfies it")
        started = time.thread_time()
        grammar.matcher().mask(logits)
        if time.thread_time() - started > _LONGEST_FIRST_MASK:
            raise GrammarError("it is so large that others would wait for its answers")

    @functools.cached_property
    def _tokenizer(self) -> LLTokenizer:
        """The vocabulary as llguidance walks it; takes a second and is made when the first grammar comes."""
        return LLTokenizer(
            _Wrapped(_Tokens(self._vocab)),
            n_vocab=self._vocab.n_tokens,
            eos_token=sorted(self._vocab.end_of_generation),
        )


# Compact JSON costs the fewest tokens, and a model cannot lose itself in white space.
_JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}


class _Tokens:
    """A vocabulary in the words of ``llguidance.TokenizerWrapper``."""

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


def _in_one_line(complaint: str) -> str:
    """A complaint without line breaks, and no longer than a person reads."""
    line = " ".join(complaint.replace("<non-verbose/>", "").split())
    return line if len(line) <= _LONGEST_COMPLAINT else f"{line[:_LONGEST_COMPLAINT]}…"


def check_schema(schema: Any) -> None:
    """Refuse a schema of which nothing good comes, also within a grammar.

    Raises:
        GrammarError: It has no text that ends, or takes too long to compile.
    """
    complaint = complaint_about(schema)
    if complaint is not None:
        raise GrammarError(complaint)
