"""A chain of llama.cpp's samplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp.llama_cpp as lib

from app.engine.llama.context import Context
from app.engine.llama.model import Vocab


class Sampler:
    """A sampler chain: logits to one token.

    The methods from ``logit_bias`` to ``draw`` append a sampler. The last one must be ``greedy`` or ``draw``.
    """

    def __init__(self, vocab: Vocab) -> None:
        self._n_vocab = vocab.n_tokens
        self._handle = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

    def logit_bias(self, bias: Mapping[int, float]) -> None:
        """Add a bias to the logits of some tokens. Minus infinity forbids a token."""
        native = (lib.llama_logit_bias * len(bias))(*(lib.llama_logit_bias(t, b) for t, b in bias.items()))
        self._add(lib.llama_sampler_init_logit_bias(self._n_vocab, len(bias), native))

    def penalties(
        self, last_n: int, repetition: float, frequency: float, presence: float, seen: Sequence[int]
    ) -> None:
        """Penalize tokens that occur in the last ``last_n`` tokens, counting the tokens of ``seen``."""
        sampler = lib.llama_sampler_init_penalties(self._n_vocab, last_n, repetition, frequency, presence)
        for token in seen[-last_n:]:
            lib.llama_sampler_accept(sampler, token)
        self._add(sampler)

    def top_k(self, k: int) -> None:
        """Keep the ``k`` most probable tokens."""
        self._add(lib.llama_sampler_init_top_k(k))

    def typical_p(self, p: float) -> None:
        """Locally typical sampling: keep tokens with information near the entropy (Meister et al. 2022)."""
        self._add(lib.llama_sampler_init_typical(p, 1))

    def top_p(self, p: float) -> None:
        """Nucleus sampling: keep the most probable tokens up to ``p`` in total (Holtzman et al. 2020)."""
        self._add(lib.llama_sampler_init_top_p(p, 1))

    def min_p(self, p: float) -> None:
        """Keep tokens with at least ``p`` times the highest probability."""
        self._add(lib.llama_sampler_init_min_p(p, 1))

    def temperature(self, temperature: float) -> None:
        self._add(lib.llama_sampler_init_temp(temperature))

    def greedy(self) -> None:
        self._add(lib.llama_sampler_init_greedy())

    def draw(self, seed: int) -> None:
        """Sample from the distribution."""
        self._add(lib.llama_sampler_init_dist(seed))

    def _add(self, sampler: Any) -> None:
        lib.llama_sampler_chain_add(self._handle, sampler)

    def sample(self, context: Context, row: int) -> int:
        """Sample a token from a row of the last decode's logits and update the penalties with it."""
        return int(lib.llama_sampler_sample(self._handle, context._handle, context.output_tokens[row]))

    def close(self) -> None:
        if self._handle:
            lib.llama_sampler_free(self._handle)
            self._handle = None
