"""Sampling parameters of one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.engine.sampling.grammar import Grammar
from app.engine.sampling.watermark import Watermark


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
    keeps_stop: bool = False  # whether the stop string is part of the answer, as in TGI
    ignore_eos: bool = False
    watermark: Watermark | None = None
    visible: frozenset[int] = frozenset()  # control tokens that are part of the answer's text
    grammar: Grammar | None = None  # what the answer has to keep to
    logprobs: int | None = None  # of every token of the answer, and as many of the likeliest beside it
    prompt_logprobs: int | None = None  # the same of every token of the prompt but the first
