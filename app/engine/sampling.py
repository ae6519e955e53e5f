"""SamplingParams, and the chain of samplers that carries them out."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.engine.llama import Sampler, Vocab


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one answer are chosen. Every dialect maps to these.

    Penalties: ``repetition_penalty`` counts the last ``repeat_last_n`` tokens of prompt and answer
    (Keskar et al. 2019); ``frequency_penalty`` and ``presence_penalty`` count the answer alone, as in
    OpenAI's API.
    """

    max_tokens: int = 512
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps all
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    repeat_last_n: int = 64  # 0 is off, -1 everything
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None  # None draws a new one
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


def make_sampler(params: SamplingParams, vocab: Vocab, prompt: Sequence[int]) -> Sampler:
    """Build the chain for one sequence: what forbids and penalizes first, then what cuts, then the draw.

    The order of the cuts is llama.cpp's own (``common/sampling.cpp``).
    """
    sampler = Sampler(vocab)
    bias = dict(params.logit_bias)
    if params.ignore_eos:
        bias.update((token, -math.inf) for token in vocab.end_of_generation)
    if bias:
        sampler.logit_bias(bias)
    n_total = len(prompt) + params.max_tokens
    if params.repetition_penalty != 1 and params.repeat_last_n != 0:
        # The sampler reserves memory for as many tokens as it may look back on.
        last_n = min(n_total, params.repeat_last_n) if params.repeat_last_n > 0 else n_total
        sampler.penalties(last_n, params.repetition_penalty, 0, 0, prompt)
    if params.frequency_penalty or params.presence_penalty:
        sampler.penalties(n_total, 1, params.frequency_penalty, params.presence_penalty, ())
    if params.temperature <= 0:
        sampler.greedy()
        return sampler
    if params.top_k > 0:
        sampler.top_k(params.top_k)
    if params.typical_p < 1:
        sampler.typical_p(params.typical_p)
    if params.top_p < 1:
        sampler.top_p(params.top_p)
    if params.min_p > 0:
        sampler.min_p(params.min_p)
    sampler.temperature(params.temperature)
    sampler.draw(secrets.randbits(32) if params.seed is None else params.seed)
    return sampler
