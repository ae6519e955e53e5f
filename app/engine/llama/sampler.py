"""llama.cpp's samplers in a chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp.llama_cpp as lib

from app.engine.llama.context import Context
from app.engine.llama.model import Vocab


class Sampler:
    """A chain of llama.cpp's samplers: logits in, one token out.

    The methods from ``logit_bias`` to ``draw`` append a sampler; a chain ends with ``greedy`` or ``draw``.
    """

    def __init__(self, vocab: Vocab) -> None:
        self._n_vocab = vocab.n_tokens
        self._handle = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

    def logit_bias(self, bias: Mapping[int, float]) -> None:
        """Add to the logits of some tokens; minus infinity forbids a token."""
        native = (lib.llama_logit_bias * len(bias))(*(lib.llama_logit_bias(t, b) for t, b in bias.items()))
        self._add(lib.llama_sampler_init_logit_bias(self._n_vocab, len(bias), native))

    def penalties(
        self, last_n: int, repetition: float, frequency: float, presence: float, seen: Sequence[int]
    ) -> None:
        """Penalize tokens among the ``last_n`` last ones; ``seen`` are those before the first is sampled."""
        sampler = lib.llama_sampler_init_penalties(self._n_vocab, last_n, repetition, frequency, presence)
        for token in seen[-last_n:]:
            lib.llama_sampler_accept(sampler, token)
        self._add(sampler)

    def top_k(self, k: int) -> None:
        """Keep the ``k`` likeliest tokens."""
        self._add(lib.llama_sampler_init_top_k(k))

    def typical_p(self, p: float) -> None:
        """Keep the tokens whose surprise is nearest to the expected one (Meister et al. 2022)."""
        self._add(lib.llama_sampler_init_typical(p, 1))

    def top_p(self, p: float) -> None:
        """Keep the likeliest tokens that together have probability ``p`` (Holtzman et al. 2020)."""
        self._add(lib.llama_sampler_init_top_p(p, 1))

    def min_p(self, p: float) -> None:
        """Keep the tokens with at least ``p`` times the probability of the likeliest."""
        self._add(lib.llama_sampler_init_min_p(p, 1))

    def temperature(self, temperature: float) -> None:
        """Divide the logits by ``temperature``."""
        self._add(lib.llama_sampler_init_temp(temperature))

    def greedy(self) -> None:
        """Choose the likeliest token."""
        self._add(lib.llama_sampler_init_greedy())

    def draw(self, seed: int) -> None:
        """Draw a token by its probability."""
        self._add(lib.llama_sampler_init_dist(seed))

    def _add(self, sampler: Any) -> None:
        lib.llama_sampler_chain_add(self._handle, sampler)

    def sample(self, context: Context, row: int) -> int:
        """Choose a token by a row of the last decode's logits and let the chain know it."""
        return int(lib.llama_sampler_sample(self._handle, context._handle, context.output_tokens[row]))

    def close(self) -> None:
        """Free the chain and its samplers."""
        if self._handle:
            lib.llama_sampler_free(self._handle)
            self._handle = None
