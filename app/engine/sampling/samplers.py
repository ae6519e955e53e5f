"""Samplers: of single tokens, and wrappers for grammars and watermarks."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from random import Random

from app.engine import llama
from app.engine.llama import Logits, Vocab
from app.engine.sampling.grammar import Matcher
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.sampler import Sampler
from app.engine.sampling.thinking import ThinkingSampler
from app.engine.sampling.watermark import Watermark
from app.engine.thoughts import ThoughtReader

# Below, sampling is greedy: the most likely token is certain, and divided logits overflow.
_LEAST_TEMPERATURE = 1e-9
_LEAST_PENALTY = 1e-20  # logits that are divided by less overflow


def make_sampler(
    params: SamplingParams, vocab: Vocab, prompt: Sequence[int], thoughts: ThoughtReader | None = None
) -> Sampler:
    """Create the sampler of an answer; ``thoughts``: reads the answer's thoughts, if it can have any."""
    sampler: Sampler = TokenSampler(params, vocab, prompt)
    if params.watermark:
        sampler = WatermarkingSampler(sampler, params.watermark, prompt[-1])
    if params.thinking is not None and thoughts is not None:
        return ThinkingSampler(sampler, params.grammar, thoughts, params.thinking.begin_tokens)
    return ConstrainedSampler(sampler, params.grammar.matcher()) if params.grammar else sampler


class TokenSampler:
    """Chooses tokens by the model's probabilities after bias, penalties, truncation and temperature."""

    def __init__(self, params: SamplingParams, vocab: Vocab, prompt: Sequence[int]) -> None:
        self.is_finished = False
        is_greedy = params.temperature < _LEAST_TEMPERATURE
        last_n = _look_back(params, len(prompt))
        self._native = llama.Sampler(
            temperature=0 if is_greedy else params.temperature,
            top_k=params.top_k,
            typical_p=params.typical_p,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=max(params.repetition_penalty, _LEAST_PENALTY),
            repeat_last_n=last_n,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            bias=_all_bias(params, vocab),
            prompt=prompt[-last_n:] if last_n else (),
        )
        # Not for secrets: equal seeds give equal draws.
        self._random = Random(secrets.randbits(32) if params.seed is None else params.seed % 2**32)

    def forced(self, _limit: int) -> list[int]:
        return []

    def sample(self, logits: Logits) -> int:
        return self._native.sample(logits, self._random.random())

    def close(self) -> None:
        self._native.close()


class ConstrainedSampler:
    """Restricts another sampler to the tokens that a grammar allows."""

    def __init__(self, sampler: Sampler, matcher: Matcher) -> None:
        self._sampler = sampler
        self._matcher = matcher

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete, so that no end token is needed."""
        return self._matcher.is_finished

    def forced(self, limit: int) -> list[int]:
        """Text determined by the grammar, such as the keys of an object."""
        return self._matcher.forced(limit)

    def sample(self, logits: Logits) -> int:
        self._matcher.mask(logits)
        token = self._sampler.sample(logits)
        self._matcher.accept(token)
        return token

    def close(self) -> None:
        self._sampler.close()


class WatermarkingSampler:
    """Adds a watermark to another sampler."""

    def __init__(self, sampler: Sampler, watermark: Watermark, previous: int) -> None:
        self._sampler = sampler
        self._watermark = watermark
        self._previous = previous  # token

    @property
    def is_finished(self) -> bool:
        return self._sampler.is_finished

    def forced(self, limit: int) -> list[int]:
        return self._sampler.forced(limit)

    def sample(self, logits: Logits) -> int:
        self._watermark.mark(logits, self._previous)
        self._previous = self._sampler.sample(logits)
        return self._previous

    def close(self) -> None:
        self._sampler.close()


def _all_bias(params: SamplingParams, vocab: Vocab) -> dict[int, float]:
    bias = dict(params.logit_bias)
    if params.ignore_eos:
        bias.update((token, -math.inf) for token in vocab.end_of_generation)
    return bias


def _look_back(params: SamplingParams, n_prompt: int) -> int:
    """Number of last tokens in which repetition is penalized; 0 if it is not."""
    if params.repetition_penalty == 1:
        return 0
    n_most = n_prompt + params.max_tokens
    return n_most if params.repeat_last_n < 0 else min(n_most, params.repeat_last_n)
