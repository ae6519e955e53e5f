"""Sampling parameters of one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.engine.sampling.grammar import Grammar
from app.engine.sampling.watermark import Watermark
from app.engine.thoughts import Thinking


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one answer. Every dialect maps its parameters to these.

    ``repetition_penalty`` counts the last ``repeat_last_n`` tokens of prompt and answer (Keskar et al. 2019).
    ``frequency_penalty`` and ``presence_penalty`` count only the answer, as in OpenAI's API.
    """

    max_tokens: int = 512
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps all
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    repeat_last_n: int = 64  # 0 disables the penalty, -1 counts all tokens
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None  # modulo 2^32; equal seeds give equal draws. None: a random one
    stop: tuple[str, ...] = ()  # like the grammar, not within thoughts
    keeps_stop: bool = False  # the answer includes the stop string, as in TGI
    ignore_eos: bool = False
    watermark: Watermark | None = None
    visible: frozenset[int] = frozenset()  # control tokens whose text is part of the answer
    grammar: Grammar | None = None  # constrains the answer
    thinking: Thinking | None = None  # thoughts before the answer
    logprobs: int | None = None  # top tokens per token of the answer; 0: only its own logprob
    prompt_logprobs: int | None = None  # the same for the prompt, except its first token
