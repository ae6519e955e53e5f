"""Contexts whose answers are one of several choices.

The probabilities of all choices are computed first. One of them is then drawn, and generated as the answer.
So an answer agrees with its probabilities, whatever its sampling parameters are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.chat.prompt import PromptTokenizer
from app.config.contexts import Context
from app.engine.llama import Vocab
from app.engine.scoring import Question
from app.service.errors import BadRequest
from app.service.preparing.prompts import ChatPrompt, Constraint, Prompt


@dataclass(frozen=True, slots=True)
class Choices:
    """The possible answers of a context.

    Attributes:
        names: Their texts.
        tokens: Their tokens.
        options: Their tokens as the model writes them, and the end of the turn where another one begins so.
    """

    names: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    options: tuple[tuple[int, ...], ...]

    @property
    def n_longest(self) -> int:
        """Tokens of the longest one."""
        return max(map(len, (*self.tokens, *self.options)))

    def scored(self, prompt: Sequence[int]) -> tuple[list[int], Question]:
        """A prompt and its answers as a question. The last token of the prompt is the question."""
        return list(prompt[:-1]), Question((prompt[-1],), self.options)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Probabilities of the possible answers of a context with choices.

    Attributes:
        probabilities: By name. Their sum is 1.
        label_mass: Probability of all choices before they are scaled to 1.
        n_cached: Prompt tokens from the prefix cache when the choices were scored.
    """

    probabilities: dict[str, float]
    label_mass: float
    n_cached: int


def choices_of(context: Context, vocab: Vocab, tokenizer: PromptTokenizer) -> Choices:
    """The choices of a context that has some.

    Raises:
        BadRequest: A choice has no tokens, or two have the same.
    """
    assert context.choices is not None
    names = tuple(context.choices)
    tokens = tuple(tokenizer.reply_tokens(name) for name in names)
    for index, (name, one) in enumerate(zip(names, tokens, strict=True)):
        if not one or one in tokens[:index]:
            raise BadRequest(
                f"the choice {name!r} has no tokens, or those of another choice", field="choices"
            )
    # Without its end, a choice would include the probability of the choices that begin with it.
    natural = [tokenizer.natural_reply(name) for name in names]
    begins = {one[:n] for one in natural for n in range(1, len(one))}
    options = tuple((*one, vocab.eos) if one in begins and vocab.eos >= 0 else one for one in natural)
    return Choices(names, tokens, options)


def check_combination(context: Context, prompt: Prompt, constraint: Constraint | None) -> None:
    """Check that a request does not constrain its answer itself, if its context has choices.

    Raises:
        BadRequest: It does.
    """
    if context.choices is None or not isinstance(prompt, ChatPrompt):
        return
    allowed = f"the context allows only the answers {', '.join(context.choices)}"
    if constraint is not None:
        raise BadRequest(f"cannot be used: {allowed}", field=constraint.field)
    if prompt.tools is not None:
        raise BadRequest(f"cannot be used: {allowed}", field="tools")
    if prompt.continues:
        raise BadRequest(f"the last message cannot be continued: {allowed}", field=prompt.field)
