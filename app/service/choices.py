"""Contexts whose answers are one of several choices.

The probabilities of all choices are computed first. One of them is then drawn, and generated as the answer.
So an answer agrees with its probabilities, whatever its sampling parameters are.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from app.chat.prompt import PromptTokenizer
from app.config.contexts import Context
from app.engine.client import Client
from app.engine.llama import Vocab
from app.engine.sampling.grammar import FixedAnswer
from app.engine.scoring import Question
from app.service.decisions import decision_of
from app.service.errors import BadRequest
from app.service.generation import Chosen, Generation
from app.service.prompts import ChatPrompt, Constraint, Prompt

if TYPE_CHECKING:
    from app.service.model import Model
    from app.service.preparation import Prepared

_LEAST_TEMPERATURE = 1e-9  # greedy below


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


async def choose(
    model: Model, prepared: Prepared, n: int, requested_at: float, client: Client
) -> list[Generation]:
    """Start ``n`` answers, each drawn from the choices of a context. See ``Model.submit``.

    Raises:
        ServiceError: The request exceeds the limits, the queue is full, or the engine has failed.
    """
    choices, params = prepared.choices, prepared.params
    assert choices is not None
    prompt, question = choices.scored(prepared.tokens)
    checkpoints = (*prepared.turn_ends, len(prompt))
    scored = await model.score(prompt, [question], client, adapter=prepared.adapter, checkpoints=checkpoints)
    decision = decision_of(scored.logprobs[0])
    probabilities = dict(zip(choices.names, decision.probabilities, strict=True))
    chosen = Chosen(probabilities, decision.label_mass, scored.n_cached)
    generations: list[Generation] = []
    try:
        for index in range(n):
            seed = None if params.seed is None else (params.seed + index) % 2**32
            name = drawn(decision.probabilities, params.temperature, seed)
            fixed = replace(params, seed=seed, grammar=FixedAnswer(choices.tokens[name]))
            one = replace(prepared, params=fixed, chosen=chosen)
            generations += model.submit(one, 1, requested_at, client)
    except BaseException:
        for generation in generations:
            generation.close()
        raise
    return generations


def drawn(probabilities: Sequence[float], temperature: float, seed: int | None) -> int:
    """Draw an index. At temperature 0 it is that of the highest probability."""
    highest = max(probabilities)
    if temperature < _LEAST_TEMPERATURE:
        return probabilities.index(highest)
    weights = [math.exp(math.log(p / highest) / temperature) if p > 0 else 0.0 for p in probabilities]
    random = Random(secrets.randbits(32) if seed is None else seed)
    return random.choices(range(len(weights)), weights)[0]
