"""Thoughts before an answer: which tokens belong to them, and when they end."""

from __future__ import annotations

import codecs
import enum
from dataclasses import dataclass
from typing import NamedTuple

from app.engine.detokenizer import overlap
from app.engine.llama import Vocab

_LONGEST_HEADER = 200  # characters of a message's header, such as ``<|channel|>final<|message|>``


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """Text around a thought in a model's output.

    Attributes:
        begin: Text before a thought, such as ``<think>``.
        end: Text after it, such as ``</think>``.
        lead: White space between a thought and ``end``.
        gap: Text between ``end`` and the answer. It may have markup, such as ``<response>``.
        header_end: The output consists of messages with headers. Text at the end of each header, else empty.
            A header with ``begin`` precedes a thought, another header precedes the answer.
    """

    begin: str
    end: str
    lead: str = "\n"
    gap: str = "\n\n"
    header_end: str = ""

    @property
    def closing(self) -> str:
        """Text from a thought to the answer."""
        return self.lead + self.end + self.gap


@dataclass(frozen=True, slots=True)
class Thinking:
    """Thoughts of one answer.

    Attributes:
        marks: Text around thoughts.
        visible: Control tokens in the marks.
        is_open: The prompt ends within a thought.
        may_begin: The answer may begin with a thought, even if a grammar constrains it.
        budget: Maximum tokens of thoughts. None: no limit.
        begin_tokens: Tokens of ``marks.begin``.
        closing_tokens: Tokens of ``marks.closing``. They end a thought at its budget.
        gap_tokens: Tokens of ``marks.gap``. They precede an answer with a grammar.
    """

    marks: ThoughtMarks
    visible: frozenset[int] = frozenset()
    is_open: bool = False
    may_begin: bool = True
    budget: int | None = None
    begin_tokens: tuple[int, ...] = ()
    closing_tokens: tuple[int, ...] = ()
    gap_tokens: tuple[int, ...] = ()


class NewText(NamedTuple):
    """Text that later tokens cannot change.

    Attributes:
        answer: Text of the answer.
        thought: Text of a thought before it.
        is_thought: Whether the last token belongs to a thought or its marks.
    """

    answer: str = ""
    thought: str = ""
    is_thought: bool = False


class _State(enum.Enum):
    OPENING = enum.auto()  # before a thought or the answer
    THOUGHT = enum.auto()
    CLOSING = enum.auto()  # between a thought and an answer with a grammar
    ANSWER = enum.auto()


class ThoughtReader:
    """Separates the thoughts of one answer from its text.

    White space around thoughts is dropped. Possible beginnings of marks are held back.

    Attributes:
        forced: Tokens that must follow.
        n_tokens: Tokens of thoughts, their marks included.
    """

    def __init__(self, thinking: Thinking, vocab: Vocab, *, is_constrained: bool) -> None:
        """Start an answer; ``is_constrained``: a grammar applies after the thought."""
        self._thinking = thinking
        self._marks = thinking.marks
        self._vocab = vocab
        self._is_constrained = is_constrained
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._held = ""
        self._thought_parts: list[str] = []  # of the current token
        self._needs_break = False  # an earlier thought has text
        self._is_written = False  # the current thought has text
        self._has_thought = thinking.is_open
        self._n_pending = 0  # tokens that belong to a thought if one follows
        self.forced: tuple[int, ...] = ()
        self.n_tokens = 0
        self._state = _State.THOUGHT if thinking.is_open else _State.OPENING
        if is_constrained and not thinking.is_open and not thinking.may_begin:
            self._state = _State.ANSWER
        header = self._marks.header_end
        ends = [vocab.tokenize(self._marks.end, parse_special=True)] if header else []
        self._restarts = frozenset(tokens[0] for tokens in ends if len(tokens) == 1)
        self._apply_budget()

    @property
    def is_thinking(self) -> bool:
        return self._state is _State.THOUGHT

    @property
    def is_over(self) -> bool:
        """Whether the answer has begun."""
        return self._state is _State.ANSWER

    def takes(self, token: int) -> bool:
        """Whether ``push`` must get the token. Otherwise it belongs to the answer."""
        return self._state is not _State.ANSWER or bool(self._held) or token in self._restarts

    def begin_answer(self) -> None:
        """Record that no thought precedes the answer."""
        self._state = _State.ANSWER

    def instead_of(self, token: int) -> int:
        """The token that ends the thought, if ``token`` would end the output within it."""
        if not self.is_thinking or token not in self._vocab.end_of_generation:
            return token
        self.forced = self._thinking.closing_tokens
        return self.forced[0] if self.forced else token

    def push(self, token: int) -> NewText:
        """Add a token."""
        if self.forced and token == self.forced[0]:
            self.forced = self.forced[1:]
        self._n_pending += 1
        is_mark = token in self._thinking.visible or token in self._restarts
        piece = self._vocab.text(token).encode() if is_mark else self._vocab.piece(token)
        self._held += self._decoder.decode(piece)
        if self._state is _State.ANSWER and token in self._restarts:
            self._held, self._state = "", _State.OPENING
        answer = self._read()
        self._count(has_answer=bool(answer))
        self._apply_budget()
        is_thought = not answer and (self._has_thought or bool(self._held.strip()))
        return NewText(answer, self._take_thought(), is_thought)

    def finish(self) -> NewText:
        """End the answer. Returns the text that was held back."""
        held, self._held = self._held, ""
        if self._state is _State.THOUGHT:
            self._think(held.rstrip())
            return NewText("", self._take_thought(), True)
        if self._state is _State.OPENING and self._marks.header_end:
            return NewText()  # part of a header
        return NewText(held.lstrip() if self._has_thought else held)

    def _take_thought(self) -> str:
        thought, self._thought_parts = "".join(self._thought_parts), []
        return thought

    # --- states: each reads held text, or returns False to wait for more

    def _read(self) -> str:
        """Classify the held text; returns the answer's part."""
        while (self._state is _State.OPENING and self._read_opening()) or (
            self._state is _State.THOUGHT and self._read_thought()
        ):
            pass
        if self._state is _State.CLOSING:
            self._held = ""
            self._state = _State.CLOSING if self.forced else _State.ANSWER
        if self._state is not _State.ANSWER:
            return ""
        answer, self._held = self._held, ""
        return answer

    def _read_opening(self) -> bool:
        if self._marks.header_end:
            return self._read_header()
        text, head = self._held.lstrip(), self._marks.gap.strip() if self._has_thought else ""
        openings = [(self._marks.begin, _State.THOUGHT), *([(head, _State.ANSWER)] if head else [])]
        for mark, state in openings:
            if text.startswith(mark):
                self._open(state, text[len(mark) :])
                return True
        if any(mark.startswith(text) for mark, _ in openings):
            return False
        self._open(_State.ANSWER, text if self._has_thought else self._held)
        return True

    def _read_header(self) -> bool:
        text = self._held.lstrip()
        header, end, rest = text.partition(self._marks.header_end)
        if end:
            is_thought = (header + end).endswith(self._marks.begin)
            self._open(_State.THOUGHT if is_thought else _State.ANSWER, rest)
            return True
        is_header = any(text.startswith(mark) or mark.startswith(text) for mark in ("<|", "to="))
        if is_header and len(text) < _LONGEST_HEADER:
            return False
        self._open(_State.ANSWER, self._held)
        return True

    def _open(self, state: _State, rest: str) -> None:
        self._held, self._state = rest, state
        if state is _State.THOUGHT:
            self._has_thought, self._is_written = True, False
        elif self._has_thought:
            self._held = rest.lstrip()

    def _read_thought(self) -> bool:
        end = self._marks.end
        at = self._held.find(end)
        if at < 0:
            kept = self._held[: len(self._held) - overlap(self._held, end)].rstrip()
            self._think(kept)
            self._held = self._held[len(kept) :]
            return False
        self._think(self._held[:at].rstrip())
        self._needs_break = self._needs_break or self._is_written
        self._held = self._held[at + len(end) :]
        self._state = _State.OPENING
        if self._is_constrained:
            self.forced = self.forced or self._thinking.gap_tokens
            self._state = _State.CLOSING
        return True

    def _think(self, text: str) -> None:
        if not self._is_written:
            text = text.lstrip()
            if text and self._needs_break:
                text = f"\n\n{text}"
        if text:
            self._is_written = True
            self._thought_parts.append(text)

    # --- tokens

    def _count(self, *, has_answer: bool) -> None:
        if self._state is _State.ANSWER:
            self.n_tokens += max(0, self._n_pending - has_answer) if self._has_thought else 0
            self._n_pending = 0
        elif self._has_thought:
            self.n_tokens += self._n_pending
            self._n_pending = 0

    def _apply_budget(self) -> None:
        budget = self._thinking.budget
        if self.is_thinking and budget is not None and self.n_tokens >= budget and not self.forced:
            self.forced = self._thinking.closing_tokens
