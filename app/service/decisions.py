"""Questions about a state, each answered with probabilities of its options."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from app.chat.prompt import PromptTokenizer
from app.chat.template.sandbox import TemplateRejection
from app.chat.template.thoughts import switches
from app.engine.cache.prefix_tree import n_shared_tokens
from app.engine.llama import Vocab
from app.engine.scoring import Question
from app.service.errors import BadRequest, ServiceError, TooLong
from app.service.limits import TokenLimits

MOST_QUESTIONS = 400
MOST_OPTIONS = 255

Content = str | dict[str, Any] | list[Any]


@dataclass(frozen=True, slots=True)
class Option:
    """A possible answer. Without a description, its name alone describes it."""

    name: str
    description: Content | None = None


@dataclass(frozen=True, slots=True)
class DecisionQuestion:
    """A question with its options.

    Attributes:
        instructions: Text of the question. None: the options describe it.
        options: At least one.
        field: Name of the request's field, for error messages.
        answers_by_name: The names, such as Yes and No, are answers themselves. If not, labels stand for them.
    """

    instructions: Content | None
    options: tuple[Option, ...]
    field: str
    answers_by_name: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a question.

    Attributes:
        probabilities: Of each option. Their sum is 1.
        label_mass: Probability of all options before they are scaled to 1. A low value shows
            that another reply was more probable.
    """

    probabilities: list[float]
    label_mass: float

    @property
    def best(self) -> int:
        """Index of the most probable option."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        """The highest probability."""
        return max(self.probabilities)


@dataclass(frozen=True, slots=True)
class Decisions:
    """The answers to a request.

    Attributes:
        model: Name of the model.
        answers: For each question, its decision, or the reason why there is none.
        n_input: Tokens of the state, once, and of all questions.
        n_cached: Of these, tokens from the prefix cache.
    """

    model: str
    answers: list[Decision | ServiceError]
    n_input: int
    n_cached: int


@dataclass(frozen=True, slots=True)
class PreparedQuestions:
    """Input of the engine: the tokens that all questions share, and the questions by index.

    ``failures`` has the reasons for the missing ones, by index.
    """

    prompt: list[int]
    questions: dict[int, Question]
    failures: dict[int, ServiceError]

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt, once, and of all questions."""
        return len(self.prompt) + sum(len(question.tokens) for question in self.questions.values())


def rendered(content: Content) -> str:
    """A text as it is, other JSON in a canonical form: equal values have equal tokens."""
    if isinstance(content, str):
        return content
    return json.dumps(content, ensure_ascii=False, sort_keys=True, indent=1)


def decision_of(logprobs: Sequence[float]) -> Decision:
    """Scale probabilities to a sum of 1."""
    highest = max(logprobs)
    weights = [math.exp(logprob - highest) for logprob in logprobs]
    total = sum(weights)
    return Decision([weight / total for weight in weights], min(1.0, total * math.exp(highest)))


class QuestionPreparation:
    """Renders and tokenizes questions for one model. Thread-safe."""

    def __init__(self, vocab: Vocab, tokenizer: PromptTokenizer, limits: TokenLimits) -> None:
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
        head, rest = self._head(rendered(state) + first)
        asked: dict[int, Question] = {}
        failures: dict[int, ServiceError] = {}
        for index, question in enumerate(questions):
            try:
                asked[index] = self._question(question, lambda text: rest(second + text), len(head))
            except ServiceError as error:
                failures[index] = error
        if not asked:
            raise failures[0]
        # Each question keeps at least one token.
        one, *others = [question.tokens for question in asked.values()]
        n_shared = min(len(one) - 1, *(min(n_shared_tokens(one, o), len(o) - 1) for o in others), len(one))
        short = {i: Question(question.tokens[n_shared:], question.options) for i, question in asked.items()}
        return PreparedQuestions([*head, *one[:n_shared]], short, failures)

    def _head(self, text: str) -> tuple[list[int], Callable[[str], list[int]]]:
        try:
            return self._tokenizer.in_parts(text, options=self._options)
        except (TemplateRejection, ValueError) as error:
            raise BadRequest(f"the model's chat template rejects the state: {error}") from error

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
        if n_tokens > self._limits.input:
            raise TooLong(
                f"the state and this question have {n_tokens} tokens; the limit is {self._limits.input} "
                "(N_CTX, MAX_INPUT_LENGTH)",
                field=question.field,
            )
        return Question(tuple(tokens), options)

    def _reply(self, name: str, question: DecisionQuestion) -> tuple[int, ...]:
        """The tokens of a reply. If it may begin a longer one, the end of the turn is part of it."""
        reply = self._tokenizer.reply_tokens(name)
        if not reply:
            raise BadRequest(f"option {name!r} has no tokens", field=question.field)
        end = () if question.answers_by_name or self._vocab.eos < 0 else (self._vocab.eos,)
        return (*reply, *end)

    @functools.cached_property
    def _labels(self) -> tuple[tuple[str, int], ...]:
        """The letters that are one token at the start of a reply, each with its token."""
        labels: dict[int, str] = {}
        for letter in ascii_uppercase:
            reply = self._tokenizer.reply_tokens(letter)
            if len(reply) == 1:
                labels.setdefault(reply[0], letter)
        return tuple((letter, token) for token, letter in labels.items())

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
    how = "name" if labels is None else "letter"
    return "\n".join([*lines, f"Answer with the {how} of one option."])


def _described(option: Option) -> str:
    return option.name if option.description is None else f"{option.name}: {rendered(option.description)}"
