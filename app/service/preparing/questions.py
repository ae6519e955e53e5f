"""Questions about a state, and texts to classify, as tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from app.chat.messages import Message
from app.chat.prompt import PromptTokenizer
from app.chat.template.sandbox import TemplateRejection
from app.chat.template.thoughts import switches
from app.config.contexts import Context
from app.engine.cache.prefix_tree import n_shared_tokens
from app.engine.llama import Vocab
from app.engine.scoring import Question
from app.service.errors import BadRequest, ServiceError, TooLong
from app.service.preparing.choices import choices_of
from app.service.preparing.decisions import Content, DecisionQuestion, Option, rendered
from app.service.preparing.limits import TokenLimits
from app.service.preparing.prompts import ThinkingUse
from app.service.preparing.thinking import template_options
from app.service.preparing.turns import in_context

LABELS = ascii_uppercase  # of options; `python -m bench.bias` compares them with others


@dataclass(frozen=True, slots=True)
class PreparedQuestions:
    """Input of the engine: the tokens that all questions share, and the questions by index.

    ``failures`` has the reasons for the missing ones, by index.
    """

    prompt: list[int]
    questions: dict[int, Question]
    failures: dict[int, ServiceError]

    @classmethod
    def shared(
        cls, head: list[int], asked: dict[int, Question], failures: dict[int, ServiceError]
    ) -> PreparedQuestions:
        """Move the first tokens of all questions to the prompt. Each question keeps at least one token."""
        one, *others = [question.tokens for question in asked.values()]
        n_shared = min([len(one) - 1, *(min(n_shared_tokens(one, o), len(o) - 1) for o in others)])
        rest = {i: Question(question.tokens[n_shared:], question.options) for i, question in asked.items()}
        return cls([*head, *one[:n_shared]], rest, failures)

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt, once, and of all questions."""
        return len(self.prompt) + sum(len(question.tokens) for question in self.questions.values())


class QuestionPreparation:
    """Renders and tokenizes questions for one model. Thread-safe."""

    def __init__(
        self, vocab: Vocab, tokenizer: PromptTokenizer, limits: TokenLimits, *, labels: str = LABELS
    ) -> None:
        """``labels``: characters that stand for options. Without enough of them, names are scored."""
        self._characters = labels
        self._vocab = vocab
        self._tokenizer = tokenizer
        self._limits = limits
        has_thoughts = tokenizer.template.thoughts.marks is not None
        self._options = switches(False) if has_thoughts else {}

    def prepare(self, state: Content, questions: Sequence[DecisionQuestion]) -> PreparedQuestions:
        """Tokenize a state with each of its questions, and split them where the first ones differ.

        Raises:
            ServiceError: No question can be asked.
        """
        first, second = self._gap
        head, rest = self._in_parts([Message("user", rendered(state) + first)], self._options, "state")
        asked: dict[int, Question] = {}
        failures: dict[int, ServiceError] = {}
        for index, question in enumerate(questions):
            try:
                asked[index] = self._question(question, lambda text: rest(second + text), len(head))
            except ServiceError as error:
                failures[index] = error
        if not asked:
            raise failures[0]
        return PreparedQuestions.shared(head, asked, failures)

    def prepare_queries(self, queries: Sequence[str], context: Context, field: str) -> PreparedQuestions:
        """Tokenize queries in a context with choices. They share the tokens of the context.

        Args:
            queries: At least one.
            context: A context with choices.
            field: Name of the queries in the request, for error messages.

        Raises:
            BadRequest: The chat template rejects the context, or a choice cannot be tokenized.
            TooLong: A query is too long.
        """
        choices = choices_of(context, self._vocab, self._tokenizer)
        options = template_options(ThinkingUse(), context, self._tokenizer.template.thoughts).variables
        head, rest = self._in_parts(in_context(context, [Message("user", "")]), options, "context")
        asked = {}
        for index, query in enumerate(queries):
            tokens = tuple(rest(query))
            place = field if len(queries) == 1 else f"{field}.{index}"
            self._check_length(len(head) + len(tokens) + choices.n_longest, "this text in its context", place)
            asked[index] = Question(tokens, choices.options)
        return PreparedQuestions.shared(head, asked, {})

    def _in_parts(
        self, messages: Sequence[Message], options: Mapping[str, Any], field: str
    ) -> tuple[list[int], Callable[[str], list[int]]]:
        try:
            return self._tokenizer.in_parts(messages, options=options)
        except (TemplateRejection, ValueError) as error:
            raise BadRequest(f"the model's chat template rejects it: {error}", field=field) from error

    def _check_length(self, n_tokens: int, of: str, field: str) -> None:
        if n_tokens > self._limits.input:
            raise TooLong(
                f"{of} has {n_tokens} tokens; the limit is {self._limits.input} (N_CTX, MAX_INPUT_LENGTH)",
                field=field,
            )

    def _question(
        self, question: DecisionQuestion, tokens_of: Callable[[str], list[int]], n_head: int
    ) -> Question:
        labels = () if question.answers_by_name else self._labels
        is_labelled = 0 < len(question.options) <= len(labels)
        tokens = tokens_of(_asked(question, [label for label, _ in labels] if is_labelled else None))
        options: tuple[tuple[int, ...], ...]
        if is_labelled:
            options = tuple((token,) for _, token in labels[: len(question.options)])
        else:
            options = tuple(self._reply(option.name, question) for option in question.options)
        if len(set(options)) < len(options):
            raise BadRequest("two options have the same tokens", field=question.field)
        n_tokens = n_head + len(tokens) + max(map(len, options))
        self._check_length(n_tokens, "the state with this question", question.field)
        return Question(tuple(tokens), options)

    def _reply(self, name: str, question: DecisionQuestion) -> tuple[int, ...]:
        """The tokens of a reply. If it may begin a longer one, the end of the turn is part of it."""
        reply = self._tokenizer.natural_reply(name)
        if not reply:
            raise BadRequest(f"option {name!r} has no tokens", field=question.field)
        end = () if question.answers_by_name or self._vocab.eos < 0 else (self._vocab.eos,)
        return (*reply, *end)

    @functools.cached_property
    def _labels(self) -> tuple[tuple[str, int], ...]:
        """The labels that are one token at the start of a reply, each with its token."""
        labels: dict[int, str] = {}
        for label in self._characters:
            reply = self._tokenizer.reply_tokens(label)
            if len(reply) == 1:
                labels.setdefault(reply[0], label)
        return tuple((label, token) for token, label in labels.items())

    @functools.cached_property
    def _gap(self) -> tuple[str, str]:
        """The empty line before a question, split where both texts have the tokens of one text."""
        tokens = self._tokenizer.reply_tokens
        whole = tokens("A.\n\nQ")
        splits = (("\n\n", ""), ("\n", "\n"))
        return next((s for s in splits if tokens(f"A.{s[0]}") + tokens(f"{s[1]}Q") == whole), splits[0])


def _asked(question: DecisionQuestion, labels: Sequence[str] | None) -> str:
    """The text of a question. The state precedes it, so that questions share its tokens."""
    lines = [] if question.instructions is None else [f"Question: {rendered(question.instructions)}"]
    if question.answers_by_name:
        lines += [_described(option) for option in question.options if option.description is not None]
        return "\n".join([*lines, f"Answer with {' or '.join(o.name for o in question.options)}."])
    marks = ["-"] * len(question.options) if labels is None else [f"{label})" for label in labels]
    lines += [f"{mark} {_described(option)}" for mark, option in zip(marks, question.options, strict=False)]
    how = "name" if labels is None else "number" if labels[0].isdigit() else "letter"
    return "\n".join([*lines, f"Answer with the {how} of one option."])


def _described(option: Option) -> str:
    return option.name if option.description is None else f"{option.name}: {rendered(option.description)}"
