"""Draws answers from the choices of a context."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from app.engine.client import Client
from app.engine.sampling.grammar import FixedAnswer
from app.service.model.generation import Generation
from app.service.model.model import Model
from app.service.preparing.choices import Chosen
from app.service.preparing.decisions import decision_of
from app.service.preparing.preparation import Prepared

_LEAST_TEMPERATURE = 1e-9  # greedy below


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
