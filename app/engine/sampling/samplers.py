"""Samplers: greedy, llama.cpp's chain, and wrappers for grammars and watermarks."""

from __future__ import annotations

import math
import secrets
from collections import Counter, deque
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from app.engine import llama
from app.engine.llama import Context, Vocab
from app.engine.sampling.grammar import Matcher
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.sampler import Sampler
from app.engine.sampling.thinking import ThinkingSampler
from app.engine.sampling.watermark import Watermark
from app.engine.thoughts import ThoughtReader

# Relative to the most likely token. Smaller probabilities underflow single precision.
_LEAST_P = 1e-30
# Below, sampling is greedy: the most likely token is certain, and divided logits overflow.
_LEAST_TEMPERATURE = 1e-9
_RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: llama.cpp draws a random seed
_REPLACED_SEED = 0x9E3779B9  # replaces it; an arbitrary number, unlikely as a user's seed


def make_sampler(
    params: SamplingParams, vocab: Vocab, prompt: Sequence[int], thoughts: ThoughtReader | None = None
) -> Sampler:
    """Create the sampler of an answer; ``thoughts``: reads the answer's thoughts, if it can have any."""
    kind = GreedySampler if params.temperature < _LEAST_TEMPERATURE else ChainSampler
    sampler: Sampler = kind(params, vocab, prompt)
    if params.watermark:
        sampler = WatermarkingSampler(sampler, params.watermark, prompt[-1])
    if params.thinking is not None and thoughts is not None:
        return ThinkingSampler(sampler, params.grammar, thoughts, params.thinking.begin_tokens)
    return ConstrainedSampler(sampler, params.grammar.matcher()) if params.grammar else sampler


class GreedySampler:
    """Chooses the most likely token after bias and penalties.

    A chain of llama.cpp takes about ten times as long, because it copies the vocabulary to an array first.
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
        return []

    def sample(self, context: Context, row: int) -> int:
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
        logits[ids] = before  # the original logits, for logprobs
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Count a token of the answer."""
        self._recent.push(token)
        if self._answer is not None:
            self._answer[token] += 1

    def adjust(self, logits: NDArray[np.float32]) -> None:
        """Add bias and penalties in place, as ``llama_sampler_penalties_apply`` does."""
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
        pass


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

    def sample(self, context: Context, row: int) -> int:
        """Choose an allowed token.

        Raises:
            GrammarError: The allowed tokens cannot be computed.
        """
        self._matcher.mask(context.logits[row])
        token = self._sampler.sample(context, row)
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

    def sample(self, context: Context, row: int) -> int:
        self._watermark.mark(context.logits[row], self._previous)
        self._previous = self._sampler.sample(context, row)
        return self._previous

    def close(self) -> None:
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
    """Samples with a chain of llama.cpp: bias and penalties, then truncation, then a random draw.

    The truncation samplers have the order of llama.cpp (``common/sampling.cpp``).
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
        if params.grammar or params.thinking or params.typical_p < 1:
            # Removes forbidden tokens. typical_p computes p·log p, which is NaN for p = 0.
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
        self._chain.draw(_draw_seed(params.seed))

    def forced(self, _limit: int) -> list[int]:
        return []

    def sample(self, context: Context, row: int) -> int:
        return self._chain.sample(context, row)

    def close(self) -> None:
        self._chain.close()


def _all_bias(params: SamplingParams, vocab: Vocab) -> dict[int, float]:
    bias = dict(params.logit_bias)
    if params.ignore_eos:
        bias.update((token, -math.inf) for token in vocab.end_of_generation)
    return bias


def _look_back(params: SamplingParams, n_prompt: int) -> int:
    """Number of last tokens in which repetition is penalized; 0 if it is not."""
    if params.repetition_penalty == 1:
        return 0
    n_most = n_prompt + params.max_tokens  # llama.cpp reserves memory for this number
    return n_most if params.repeat_last_n < 0 else min(n_most, params.repeat_last_n)


def _draw_seed(seed: int | None) -> int:
    seed = (secrets.randbits(32) if seed is None else seed) % 2**32
    return _REPLACED_SEED if seed == _RANDOM_SEED else seed
