"""State of one request in the engine."""

from __future__ import annotations

import enum
import time
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from app.engine.client import LOCAL, Client
from app.engine.detokenizer import Detokenizer
from app.engine.prompt_lookup import PromptLookup
from app.engine.sampling.grammar import FixedAnswer
from app.engine.sampling.logprobs import Logprobs
from app.engine.sampling.params import SamplingParams
from app.engine.sampling.sampler import Sampler
from app.engine.thoughts import NewText, ThoughtReader

Tier = Literal["kv", "ram", "disk"]  # location of a cached prefix


class FinishReason(str, enum.Enum):
    """Reason for the end of an answer, named as in TGI."""

    EOS = "eos_token"
    STOP = "stop_sequence"
    LENGTH = "length"


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens of one request that are computed in KV memory.

    The first ``n_computed`` of ``tokens`` are in KV memory. Without a subclass, the prompt is only computed.

    Attributes:
        prompt: Token ids. Other sequences may share this prefix.
        is_context: The prompt is a shared prefix: computed and cached.
        is_background: It is computed only while no other sequence runs or waits, and ends early otherwise.
        client: Origin of the request.
        adapter: Name of the LoRA adapter that computes it; empty: the model alone.
        checkpoints: Lengths of the prompt after which a state is saved, in order, if it cannot be truncated.
        tokens: The prompt and the tokens after it.
        n_computed: Number of tokens in KV memory.
        n_cached: Number of prompt tokens from the prefix cache.
        slot: Sequence id in KV memory. None: not running.
        was_suspended: It has left a slot before its end.
        has_begun: At least one of its tokens was computed.
        submitted_at: Time of submission, as ``time.perf_counter``.
        admitted_at: Time of the first assignment of a slot. None: still waiting.
        cache_tier: Location of the cached prefix: ``kv``, ``ram`` or ``disk``. None: nothing is cached.
        request_id: Identifies the request in log lines.
        fork_at: Length of the prefix that it returns to. Memory that cannot be truncated saves it there.
    """

    prompt: list[int]
    _: KW_ONLY
    is_context: bool = False
    is_background: bool = False
    client: Client = LOCAL
    adapter: str = ""
    checkpoints: list[int] = field(default_factory=list)
    tokens: list[int] = field(init=False)
    n_computed: int = 0
    n_cached: int = 0
    slot: int | None = None
    was_suspended: bool = False
    has_begun: bool = False
    submitted_at: float = field(default_factory=time.perf_counter)
    admitted_at: float | None = None
    cache_tier: Tier | None = None
    request_id: str = ""
    fork_at: int | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def n_pending(self) -> int:
        """Number of tokens not in KV memory: 1 while decoding, more during prefill or after a suspension."""
        return len(self.tokens) - self.n_computed

    @property
    def n_later(self) -> int:
        """Number of tokens to compute after the pending ones, if it is known."""
        return 0

    @property
    def n_silent(self) -> int:
        """Number of pending tokens before the first one whose logits are needed."""
        return self.n_pending

    @property
    def searched(self) -> list[int]:
        """The tokens up to the first one whose logits are needed. Only a prefix before it can be reused."""
        return self.tokens[: self.n_computed + self.n_silent + 1]

    @property
    def max_length(self) -> int:
        """Maximum length of ``tokens``."""
        return len(self.tokens)

    @property
    def is_decoding(self) -> bool:
        """Whether the answer has begun, and all tokens but the last are in KV memory."""
        return False

    @property
    def generates(self) -> bool:
        """Whether tokens are sampled."""
        return False

    @property
    def can_be_suspended(self) -> bool:
        """Whether it can leave its slot and continue later."""
        return not self.is_context

    @property
    def repeats_prompt(self) -> bool:
        """Whether another sequence of the same request has computed its prompt."""
        return False

    def propose(self, limit: int) -> list[int]:
        """Draft at most ``limit`` next tokens."""
        del limit
        return []

    def close(self) -> None:
        """Free native memory."""


@dataclass(slots=True, eq=False)
class AnswerSequence(Sequence):
    """A prompt and its answer.

    Once all tokens are computed, the next one is sampled and appended.

    Attributes:
        params: Sampling parameters.
        sampler: Chooses the tokens.
        detokenizer: Converts tokens to text and finds stop strings.
        lookup: Source of drafts. None: no speculation.
        thoughts: Separates thoughts from the answer. None: the answer has no thoughts.
        prompt_logprobs: Log-probabilities of all prompt tokens except the first, if requested.
        finish_reason: Set by ``append`` at the last token.
    """

    params: SamplingParams
    sampler: Sampler
    detokenizer: Detokenizer
    lookup: PromptLookup | None = None
    thoughts: ThoughtReader | None = None
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    _is_guess: bool = False  # the last draft is from lookup

    @property
    def n_generated(self) -> int:
        """Number of answer tokens."""
        return len(self.tokens) - len(self.prompt)

    @property
    def n_silent(self) -> int:
        if self.scores_prompt and not self.is_decoding:
            return 0
        return self.n_pending - 1 if self.generates else self.n_pending

    @property
    def max_length(self) -> int:
        return len(self.prompt) + self.params.max_tokens

    @property
    def is_decoding(self) -> bool:
        return self.n_generated > 0 and self.n_pending <= 1

    @property
    def can_be_suspended(self) -> bool:
        return not self.scores_prompt  # the scores of a prompt are computed at once

    @property
    def repeats_prompt(self) -> bool:
        return isinstance(self.params.grammar, FixedAnswer)  # chosen by scores of the prompt

    @property
    def scores_prompt(self) -> bool:
        """Whether every prompt token must be computed, for its logits."""
        return self.params.prompt_logprobs is not None

    @property
    def generates(self) -> bool:
        return self.params.max_tokens > 0

    def close(self) -> None:
        self.sampler.close()

    def propose(self, limit: int) -> list[int]:
        """Draft at most ``limit`` tokens: forced by a grammar, otherwise by prompt lookup."""
        self._is_guess = False
        if self.lookup is None or limit <= 0:
            return []
        if forced := self.sampler.forced(limit):
            return forced
        self._is_guess = True
        return self.lookup.propose(self.tokens, limit)

    def report(self, n_proposed: int, n_accepted: int) -> None:
        """Record the verification of the last draft."""
        if self.lookup is not None and self._is_guess:
            self.lookup.report(n_proposed, n_accepted)

    @property
    def n_thought(self) -> int:
        """Number of answer tokens in thoughts."""
        return self.thoughts.n_tokens if self.thoughts else 0

    def append(self, token: int, *, ends: bool) -> NewText:
        """Append a sampled token. Sets ``finish_reason`` if it is the last one.

        Args:
            token: The token.
            ends: Whether it is an end-of-generation token.
        """
        self.tokens.append(token)
        if ends:
            self.finish_reason = FinishReason.EOS
            return self._flush()
        new = self._read(token)
        if self.detokenizer.stopped_by is not None:
            self.finish_reason = FinishReason.STOP
            return new
        if self.sampler.is_finished:
            self.finish_reason = FinishReason.EOS
        elif self.n_generated >= self.params.max_tokens:
            self.finish_reason = FinishReason.LENGTH
        else:
            return new
        held = self._flush()
        return NewText(new.answer + held.answer, new.thought + held.thought, new.is_thought)

    def _read(self, token: int) -> NewText:
        if self.thoughts is None or not self.thoughts.takes(token):
            return NewText(self.detokenizer.push(token))
        new = self.thoughts.push(token)
        return new._replace(answer=self.detokenizer.add(new.answer))

    def _flush(self) -> NewText:
        """The text that was held back."""
        held = self.thoughts.finish() if self.thoughts else NewText()
        return held._replace(answer=self.detokenizer.add(held.answer) + self.detokenizer.flush())
