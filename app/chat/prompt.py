"""Tokenizes prompts so that control tokens in user text stay plain text.

A template writes control tokens as text, such as ``<|im_end|>``, and the tokenizer recognizes them. A
rendering therefore reports which characters come from message contents. The text of a control token that
contains such a character is tokenized separately, as plain text.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.chat.messages import Message, Tool
from app.chat.template.sandbox import Rendering, TemplateRejection
from app.chat.template.template import ChatTemplate
from app.chat.tools.format import special_pattern
from app.chat.turn_ends import turn_ends
from app.engine.cache.prefix_tree import n_shared_tokens
from app.engine.llama import Vocab
from app.engine.thoughts import Thinking

# A SentencePiece vocabulary adds a space before every text that it tokenizes. To avoid that within a
# prompt, this character is put first and its tokens are removed again. It is a Unicode noncharacter in
# no vocabulary, so it never merges with the following text.
_ANCHOR = "\ufdd0"

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """A tokenized prompt.

    Attributes:
        tokens: Token ids.
        thinking: How the answer may think. None: the model does not think.
        turn_ends: Numbers of tokens at which later prompts may diverge, in order.
    """

    tokens: list[int]
    thinking: Thinking | None = None
    turn_ends: tuple[int, ...] = ()


class PromptTokenizer:
    """Tokenizes prompts for one model and its chat template."""

    def __init__(self, vocab: Vocab, template: ChatTemplate, *, finds_turns: bool = False) -> None:
        """``finds_turns``: whether to find the ``turn_ends`` of conversations."""
        self._vocab = vocab
        self._finds_turns = finds_turns
        self.template = template
        self._special = _special_tokens(vocab, template)
        self._special_ids = frozenset(self._special.values())
        self._pattern = special_pattern(self._special)
        self._lengths = sorted({len(text) for text in self._special})
        self._anchor = vocab.tokenize(_ANCHOR, parse_special=False) if vocab.is_sentencepiece else []

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        options: Mapping[str, Any] | None = None,
        thinks: bool = True,
        continue_final: bool = False,
    ) -> ChatTokens:
        """Tokenize the prompt for a conversation, up to the start of its answer.

        Args:
            messages: The conversation.
            tools: Functions that the model may call.
            options: Other variables of the template.
            thinks: Whether the answer may have thoughts. A thought that the template begins is ended.
            continue_final: Whether the answer continues the last message. That must be an assistant message
                without calls.

        Raises:
            ValueError: The last message cannot be continued.
            TemplateRejection: The template rejects the messages.
        """
        rendering, thinking = self._rendered(messages, tools, options, thinks, continue_final)
        return self._chat(rendering, messages, thinking)

    def in_parts(
        self, messages: Sequence[Message], *, options: Mapping[str, Any] | None = None
    ) -> tuple[list[int], Callable[[str], list[int]]]:
        """Tokenize conversations that differ only in the end of the last message. Answers have no thoughts.

        Args:
            messages: The common part, with the beginning of the last message. It is empty, or ends where a
                token ends, such as with a line break.
            options: Other variables of the template.

        Returns:
            The tokens of the common part, and a function from an end to the tokens after them.

        Raises:
            ValueError: The template does not repeat the message as it is.
            TemplateRejection: The template rejects the message.
        """
        mark = secrets.token_hex(8)
        marked = replace(messages[-1], content=messages[-1].content + mark)
        rendering, _ = self._rendered([*messages[:-1], marked], (), options, False, False)
        whole, contents = self._text_to_tokenize(rendering)
        at = whole.rfind(mark)
        if at < 0:
            raise ValueError("the chat template changes the text of messages")
        cut = at if messages[-1].content else self._behind_special(whole[:at], contents)
        behind = at + len(mark)
        tail, tail_contents = whole[cut:at], _within(contents, cut, at)
        after, after_contents = whole[behind:], _within(contents, behind, len(whole))

        def rest(end: str) -> list[int]:
            n = len(tail) + len(end)
            spans = [
                *tail_contents,
                (len(tail), n),
                *((n + first, n + last) for first, last in after_contents),
            ]
            return self._tokens(tail + end + after, spans, begins=cut == 0)

        return self._tokens(whole[:cut], _within(contents, 0, cut)) if cut else [], rest

    def _behind_special(self, text: str, contents: Sequence[Span]) -> int:
        """The end of the last special token in the markup. Tokens behind it do not depend on those before."""
        touches = _touching(contents)
        return max((m.end() for m in self._pattern.finditer(text) if not touches(*m.span())), default=0)

    def _rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        options: Mapping[str, Any] | None,
        thinks: bool,
        continue_final: bool,
    ) -> tuple[Rendering, Thinking | None]:
        """The text of a prompt; see ``chat``."""
        final = messages[-1] if continue_final and messages else None
        if continue_final and (final is None or final.role != "assistant" or final.tool_calls):
            raise ValueError("only an assistant message without tool calls can be continued")
        rendering = self.template.render(messages[:-1] if final else messages, tools=tools, options=options)
        marks = self.template.thoughts.marks
        if marks is None:
            return _continued(rendering, final.content if final else ""), None
        ending = rendering.traced[rendering.contents[-1][1] if rendering.contents else 0 :]
        begins, ends = ending.rfind(marks.begin), ending.rfind(marks.end)
        if ending[ends + len(marks.end) :].strip():
            ends = -1  # it ends a turn, as in gpt-oss
        is_open = begins > ends
        if is_open and (final or not thinks):
            rendering = _continued(rendering, final.thoughts if final else "")
            rendering = replace(
                rendering, text=rendering.text + marks.closing, traced=rendering.traced + marks.closing
            )
        if final:
            rendering = _continued(rendering, final.content)
            is_open = final.content.rfind(marks.begin) > final.content.rfind(marks.end)
        may_begin = thinks and final is None and ends <= begins
        thinking = self._thinking(is_open=is_open and (thinks or final is not None), may_begin=may_begin)
        return rendering, thinking

    def tokens(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        continue_final: bool = False,
    ) -> list[int]:
        """Token ids of the prompt for a conversation; see ``chat``."""
        return self.chat(messages, tools=tools, continue_final=continue_final).tokens

    def _thinking(self, *, is_open: bool, may_begin: bool) -> Thinking:
        marks = self.template.thoughts.marks
        assert marks is not None
        written = self._pattern.findall("\0".join([marks.begin, marks.closing, "<|constrain|>"]))
        control = self._vocab.control_tokens
        begin, closing, gap = (
            tuple(self._part(text, False, True)) for text in (marks.begin, marks.closing, marks.gap)
        )
        return Thinking(
            marks,
            frozenset(control[text] for text in written if text in control),
            is_open=is_open,
            may_begin=may_begin,
            begin_tokens=begin,
            closing_tokens=closing,
            gap_tokens=gap,
        )

    def _chat(
        self, rendering: Rendering, messages: Sequence[Message], thinking: Thinking | None = None
    ) -> ChatTokens:
        text, contents = self._text_to_tokenize(rendering)
        tokens = self._tokens(text, contents)
        ends = self._turn_ends(tokens, text, contents, messages) if self._finds_turns else ()
        return ChatTokens(tokens, thinking, tuple(ends))

    def _turn_ends(
        self, tokens: Sequence[int], text: str, contents: Sequence[Span], messages: Sequence[Message]
    ) -> list[int]:
        """Numbers of tokens at the ends of turns; see ``turn_ends``."""
        touches = _touching(contents)
        marks = [m.span() for m in self._pattern.finditer(text) if not touches(*m.span())]
        ids = [self._special[text[begin:end]] for begin, end in marks]
        at = [i for i, token in enumerate(tokens) if token in self._special_ids]
        at = at[max(0, len(at) - len(ids)) :]  # a BOS may have been inserted
        if [tokens[i] for i in at] != ids:
            return []
        places, start = turn_ends(text, marks, messages, contents[-1][1] if contents else None)
        count = {end: i + 1 for (_, end), i in zip(marks, at, strict=True)}
        ends = [count[place] for place in places]
        if start is not None:
            before = self._tokens(text[:start], [span for span in contents if span[1] <= start])
            # The last common token may differ in a prompt with another content.
            ends.append(n_shared_tokens(before, tokens) - 1)
        return sorted(n for n in ends if n > 0)

    def _text_to_tokenize(self, rendering: Rendering) -> tuple[str, Sequence[Span]]:
        """The text of a rendering, and its contents.

        If no content contains (part of) a special token's text, it is tokenized in one piece.
        """
        if rendering.text == rendering.traced:
            return rendering.text, rendering.contents
        # The template changes a content in a way that tracing cannot follow. The plain text is used only if
        # all its special tokens come from the template.
        touches = _touching(rendering.contents)
        own = [m[0] for m in self._pattern.finditer(rendering.traced) if not touches(*m.span())]
        if own == self._pattern.findall(rendering.text):
            return rendering.text, ()
        return rendering.traced, rendering.contents

    def text_tokens(self, text: str) -> list[int]:
        """Token ids of a plain text, all of it content."""
        return self._tokens(text, [(0, len(text))])

    def reply_tokens(self, text: str) -> tuple[int, ...]:
        """Token ids of a text at the start of an answer, all of it content."""
        return tuple(self._text_part(text, False))

    def natural_reply(self, text: str) -> tuple[int, ...]:
        """Token ids of a text at the start of an answer, with the space that the template puts before it."""
        return self.reply_tokens(self._reply_space + text)

    @functools.cached_property
    def _reply_space(self) -> str:
        """The space that the template puts between the prompt and an answer, as in ``[/INST] Yes``."""
        question, mark = [Message("user", "A or B?")], secrets.token_hex(8)
        try:
            before = self.template.render(question).text
            whole = self.template.render([*question, Message("assistant", mark)]).text
        except TemplateRejection:
            return ""  # no prompt with an answer exists
        space = whole[len(before) : max(whole.find(mark), 0)] if whole.startswith(before) else ""
        return space if not space.strip(" ") else ""

    def markup_tokens(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens' texts become those tokens."""
        return self._tokens(text, ())

    def _tokens(self, text: str, contents: Sequence[Span], *, begins: bool = True) -> list[int]:
        """Token ids of a text; ``begins``: whether it is the beginning of a prompt."""
        tokens: list[int] = []
        for begin, end, as_text in self._parts(text, contents):
            part, is_first = text[begin:end], begins and begin == 0
            tokens += self._text_part(part, is_first) if as_text else self._part(part, is_first, True)
        if not begins:
            return tokens
        if self._vocab.add_bos and self._vocab.bos >= 0 and tokens[:1] != [self._vocab.bos]:
            tokens.insert(0, self._vocab.bos)
        return tokens

    def _parts(self, text: str, contents: Sequence[Span]) -> list[tuple[int, int, bool]]:
        """Parts of the text: begin, end, and whether special tokens' texts are plain text there."""
        touches = _touching(contents)
        special = list(self._special_spans(text))
        touched = [span for span in special if touches(*span)]
        if not touched:
            return [(0, len(text), False)]
        as_text = bytearray(len(text))
        for begin, end in touched:
            as_text[begin:end] = b"\x01" * (end - begin)
        for begin, end in special:  # the template's own tokens take precedence where they overlap
            if not touches(begin, end):
                as_text[begin:end] = bytes(end - begin)
        return [(*m.span(), as_text[m.start()] == 1) for m in re.finditer(rb"\x00+|\x01+", as_text)]

    def _special_spans(self, text: str) -> Iterator[Span]:
        """Spans of special tokens' texts, including nested and overlapping ones."""
        match = self._pattern.search(text)
        while match:
            begin = match.start()
            for end in (begin + length for length in self._lengths):
                if end <= len(text) and text[begin:end] in self._special:
                    yield begin, end
            match = self._pattern.search(text, begin + 1)

    def _text_part(self, text: str, is_first: bool) -> list[int]:
        """Token ids of special tokens' texts as plain text."""
        tokens = self._part(text, is_first, False)
        if self._special_ids.isdisjoint(tokens):
            return tokens
        # llama.cpp recognizes added tokens in any text, and SentencePiece may merge characters into a
        # control token. Splitting the text prevents both.
        cuts = [0, *sorted({begin + 1 for begin, _ in self._special_spans(text)}), len(text)]
        parts = [text[begin:end] for begin, end in itertools.pairwise(cuts)]
        return [t for i, part in enumerate(parts) for t in self._part(part, is_first and i == 0, False)]

    def _part(self, text: str, is_first: bool, parse_special: bool) -> list[int]:
        if is_first or not self._anchor:
            return self._vocab.tokenize(text, parse_special=parse_special)
        return self._vocab.tokenize(_ANCHOR + text, parse_special=parse_special)[len(self._anchor) :]


def _within(contents: Sequence[Span], begin: int, end: int) -> list[Span]:
    """The parts of contents from ``begin`` to ``end``, relative to ``begin``."""
    return [(max(a, begin) - begin, min(b, end) - begin) for a, b in contents if a < end and b > begin]


def _continued(rendering: Rendering, content: str) -> Rendering:
    """Append a content to a rendering."""
    content = content.encode("utf-8", "replace").decode("utf-8")
    if not content:
        return rendering
    begin = len(rendering.traced)
    span = (begin, begin + len(content))
    return Rendering(rendering.text + content, rendering.traced + content, (*rendering.contents, span))


def _touching(contents: Sequence[Span]) -> Callable[[int, int], bool]:
    """Return a function that tells whether the span from ``begin`` to ``end`` overlaps a content."""
    begins, ends = [begin for begin, _ in contents], [end for _, end in contents]

    def touches(begin: int, end: int) -> bool:
        first = bisect.bisect_right(ends, begin)
        return first < len(begins) and begins[first] < end

    return touches


def _special_tokens(vocab: Vocab, template: ChatTemplate) -> dict[str, int]:
    """Ids of control tokens, and of added tokens that the template uses as markup, by text.

    Other added tokens are words or white space of ordinary text.
    """
    markup = {
        text: token
        for text, token in vocab.added_tokens.items()
        if len(text) > 1 and not text.isspace() and text in template.own_text
    }
    return {text: token for text, token in vocab.control_tokens.items() if text} | markup
