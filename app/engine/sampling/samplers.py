"""Samplers: they choose the tokens of one answer."""

from __future__ import annotations

import math
import secrets
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.engine import llama
from app.engine.llama import Context, Vocab
from app.engine.sampling.grammar import Matcher
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.watermark import Watermark

_LEAST_P = 1e-30  # of the likeliest token's probability; above what a single-precision number can tell from 0
# Below it the likeliest token is certain, and logits divided by it come to be infinite.
_LEAST_TEMPERATURE = 1e-9


class Sampler(Protocol):
    """Chooses the tokens of one answer, one after another."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing can follow the last token."""

    def forced(self, limit: int, /) -> list[int]:
        """What must follow, as far as that is known: at most ``limit`` tokens."""

    def sample(self, context: Context, row: int) -> int:
        """Choose the token that follows, by a row of the last decode's logits."""

    def close(self) -> None:
        """Free what the sampler holds."""


def make_sampler(params: SamplingParams, vocab: Vocab, prompt: Sequence[int]) -> Sampler:
    """Build the sampler of one answer."""
    kind = GreedySampler if params.temperature < _LEAST_TEMPERATURE else ChainSampler
    sampler: Sampler = kind(params, vocab, prompt)
    if params.watermark:
        sampler = WatermarkingSampler(sampler, params.watermark, prompt[-1])
    return ConstrainedSampler(sampler, params.grammar.matcher()) if params.grammar else sampler


class GreedySampler:
    """The likeliest token after bias and penalties.

    llama.cpp's chain copies the whole vocabulary into an array of candidates for every token, which takes
    some ten times as long as to look for the largest logit where it lies.
    """

    def __init__(self, params: SamplingParams, vocab: Vocab, prompt: Sequence[int]) -> None:
        bias = _all_bias(params, vocab)
        self._biased: NDArray[np.int64] = np.fromiter(bias.keys(), np.int64, len(bias))
        self._bias: NDArray[np.float32] = np.fromiter(bias.values(), np.float32, len(bias))
        self._repetition = params.repetition_penalty
        self._presence, self._frequency = params.presence_penalty, params.frequency_penalty
        last_n = _look_back(params, len(prompt))
        self._recent = _Window(prompt[-last_n:] if last_n else (), last_n)
        self._answer: Counter[int] | None = Counter() if self._presence or self._frequency else None
        self._adjusts = bool(bias or last_n or self._answer is not None)
        self.is_finished = False

    def forced(self, _limit: int) -> list[int]:
        """Nothing must follow."""
        return []

    def sample(self, context: Context, row: int) -> int:
        """Choose the likeliest token and count it."""
        logits = context.logits[row]
        if not self._adjusts:
            return int(logits.argmax())
        touched = [self._biased, self._recent.distinct()]
        if self._answer:
            touched.append(np.fromiter(self._answer, np.int64, len(self._answer)))
        ids = touched[0] if len(touched) == 1 else np.concatenate(touched)
        before = logits[ids]
        self.adjust(logits)
        token = int(logits.argmax())
        logits[ids] = before  # as they came, for whoever reads them next
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Count a token of the answer."""
        self._recent.push(token)
        if self._answer is not None:
            self._answer[token] += 1

    def adjust(self, logits: NDArray[np.float32]) -> None:
        """Bias, then penalties, as ``llama_sampler_penalties_apply`` has them."""
        if len(self._biased):
            logits[self._biased] += self._bias
        recent = self._recent.distinct()
        if len(recent):
            values = logits[recent]
            logits[recent] = np.where(values > 0, values / self._repetition, values * self._repetition)
        if self._answer:
            ids = np.fromiter(self._answer, np.int64, len(self._answer))
            counts = np.fromiter(self._answer.values(), np.float32, len(ids))
            logits[ids] -= counts * self._frequency + self._presence

    def close(self) -> None:
        """Nothing is held."""


class ConstrainedSampler:
    """Another sampler, over those tokens only that keep the answer within a grammar."""

    def __init__(self, sampler: Sampler, matcher: Matcher) -> None:
        self._sampler = sampler
        self._matcher = matcher

    @property
    def is_finished(self) -> bool:
        """Whether the answer is whole: then the model need not be asked for its end."""
        return self._matcher.is_finished

    def forced(self, limit: int) -> list[int]:
        """What the grammar leaves no choice about, such as the keys of an object."""
        return self._matcher.forced(limit)

    def sample(self, context: Context, row: int) -> int:
        """Choose among the tokens that may follow.

        Raises:
            GrammarError: What may follow is not known.
        """
        self._matcher.mask(context.logits[row])
        token = self._sampler.sample(context, row)
        self._matcher.accept(token)
        return token

    def close(self) -> None:
        """Free what the sampler holds."""
        self._sampler.close()


class WatermarkingSampler:
    """Another sampler, whose answer carries a watermark."""

    def __init__(self, sampler: Sampler, watermark: Watermark, previous: int) -> None:
        self._sampler = sampler
        self._watermark = watermark
        self._previous = previous  # token

    @property
    def is_finished(self) -> bool:
        """Whether nothing can follow."""
        return self._sampler.is_finished

    def forced(self, limit: int) -> list[int]:
        """What must follow."""
        return self._sampler.forced(limit)

    def sample(self, context: Context, row: int) -> int:
        """Choose a token, green ones being likelier."""
        self._watermark.mark(context.logits[row], self._previous)
        self._previous = self._sampler.sample(context, row)
        return self._previous

    def close(self) -> None:
        """Free what the sampler holds."""
        self._sampler.close()


class _Window:
    """The distinct tokens among the last ``size``."""

    def __init__(self, tokens: Iterable[int], size: int) -> None:
        self._tokens = deque(tokens, maxlen=size)
        self._counts = Counter(self._tokens)
        self._distinct: NDArray[np.int64] | None = None

    def push(self, token: int) -> None:
        if not self._tokens.maxlen:
            return
        if len(self._tokens) == self._tokens.maxlen:
            oldest = self._tokens[0]
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        self._tokens.append(token)
        self._counts[token] += 1
        self._distinct = None

    def distinct(self) -> NDArray[np.int64]:
        if self._distinct is None:
            self._distinct = np.fromiter(self._counts, np.int64, len(self._counts))
        return self._distinct


class ChainSampler:
    """A draw by llama.cpp's samplers: what forbids and penalizes first, then what cuts, then the draw.

    The order of the cuts is llama.cpp's own (``common/sampling.cpp``).
    """

    def __init__(self, params: SamplingParams, vocab: Vocab, prompt: Sequence[int]) -> None:
        self.is_finished = False
        self._chain = llama.Sampler(vocab)
        bias = _all_bias(params, vocab)
        if bias:
            self._chain.logit_bias(bias)
        if last_n := _look_back(params, len(prompt)):
            self._chain.penalties(last_n, params.repetition_penalty, 0, 0, prompt)
        if params.frequency_penalty or params.presence_penalty:
            n_answer = max(params.max_tokens, 1)
            self._chain.penalties(n_answer, 1, params.frequency_penalty, params.presence_penalty, ())
        if params.grammar:
            # Candidates without probability are to be gone: typical_p would multiply 0 by infinity.
            self._chain.min_p(_LEAST_P)
        if params.top_k > 0:
            self._chain.top_k(params.top_k)
        if params.typical_p < 1:
            self._chain.typical_p(params.typical_p)
        if params.top_p < 1:
            self._chain.top_p(params.top_p)
        if params.min_p > 0:
            self._chain.min_p(params.min_p)
        self._chain.temperature(params.temperature)
        self._chain.draw(secrets.randbits(32) if params.seed is None else params.seed)

    def forced(self, _limit: int) -> list[int]:
        """Nothing must follow."""
        return []

    def sample(self, context: Context, row: int) -> int:
        """Draw a token and let the chain know it."""
        return self._chain.sample(context, row)

    def close(self) -> None:
        """Free the chain."""
        self._chain.close()


def _all_bias(params: SamplingParams, vocab: Vocab) -> dict[int, float]:
    bias = dict(params.logit_bias)
    if params.ignore_eos:
        bias.update((token, -math.inf) for token in vocab.end_of_generation)
    return bias


def _look_back(params: SamplingParams, n_prompt: int) -> int:
    """How many tokens back a repetition counts; 0 where none does."""
    if params.repetition_penalty == 1:
        return 0
    n_most = n_prompt + params.max_tokens  # whoever looks back reserves memory for as much
    return n_most if params.repeat_last_n < 0 else min(n_most, params.repeat_last_n)
