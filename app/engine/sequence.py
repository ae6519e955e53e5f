"""One request's state, from waiting to finished."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field

from app.engine.detokenizer import Detokenizer
from app.engine.prompt_lookup import PromptLookup
from app.engine.sampling.logprobs import Logprobs
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.samplers import Sampler


class FinishReason(str, enum.Enum):
    """Why an answer ended; the names are TGI's."""

    EOS = "eos_token"
    STOP = "stop_sequence"
    LENGTH = "length"


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and the answer that grows behind it.

    ``tokens`` is both; the first ``n_computed`` of them are in KV memory. The sequence decodes once all
    but the newest token are there.
    """

    prompt: list[int]
    params: SamplingParams
    sampler: Sampler
    detokenizer: Detokenizer
    lookup: PromptLookup | None = None  # None: no speculation
    is_context: bool = False  # a prefix to be prefilled and kept; nothing is generated
    prompt_logprobs: list[Logprobs] = field(default_factory=list)  # of its tokens but the first, if asked for
    tokens: list[int] = field(init=False)
    n_computed: int = 0
    n_cached: int = 0  # prompt tokens that did not have to be computed
    slot: int | None = None  # its sequence id in KV memory, while it runs
    finish_reason: FinishReason | None = None
    submitted_at: float = field(default_factory=time.perf_counter)
    _is_guess: bool = False  # whether the last draft was looked up

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def n_generated(self) -> int:
        """How many tokens the answer has."""
        return len(self.tokens) - len(self.prompt)

    @property
    def n_pending(self) -> int:
        """How many tokens are not in KV memory yet: 1 while decoding, more during prefill."""
        return len(self.tokens) - self.n_computed

    @property
    def n_most(self) -> int:
        """The most tokens that it may come to have."""
        return len(self.prompt) + self.params.max_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether the prompt is prefilled, so that a step costs one token."""
        return self.n_generated > 0

    @property
    def wants_all_logits(self) -> bool:
        """Whether the logits behind every token of the prompt are wanted, so that all must be computed."""
        return self.params.prompt_logprobs is not None

    @property
    def generates(self) -> bool:
        """Whether anything is to be generated behind the prompt."""
        return self.params.max_tokens > 0

    def propose(self, limit: int) -> list[int]:
        """Draft at most ``limit`` tokens that may come next: what must follow, or else followed before."""
        self._is_guess = False
        if self.lookup is None or limit <= 0:
            return []
        if forced := self.sampler.forced(limit):
            return forced
        self._is_guess = True
        return self.lookup.propose(self.tokens, limit)

    def report(self, n_proposed: int, n_accepted: int) -> None:
        """Learn how the last draft fared."""
        if self.lookup is not None and self._is_guess:
            self.lookup.report(n_proposed, n_accepted)

    def append(self, token: int, *, ends: bool) -> str:
        """Take the sampled token and say which text has become certain; may finish the sequence.

        Args:
            token: The token.
            ends: Whether the model ends its answer with it.
        """
        self.tokens.append(token)
        if ends:
            self.finish_reason = FinishReason.EOS
            return self.detokenizer.flush()
        text = self.detokenizer.push(token)
        if self.detokenizer.stopped_by is not None:
            self.finish_reason = FinishReason.STOP
        elif self.sampler.is_finished:
            self.finish_reason = FinishReason.EOS
            text += self.detokenizer.flush()
        elif self.n_generated >= self.params.max_tokens:
            self.finish_reason = FinishReason.LENGTH
            text += self.detokenizer.flush()
        return text
