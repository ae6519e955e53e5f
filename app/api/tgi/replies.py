"""Response bodies of TGI's generation routes."""

from __future__ import annotations

from typing import Literal

from typing_extensions import NotRequired, TypedDict

FinishReason = Literal["length", "eos_token", "stop_sequence"]


class Token(TypedDict):
    """A generated token, or an alternative to one."""

    id: int
    text: str
    logprob: float | None
    special: bool


class PrefillToken(TypedDict):
    """A token of the prompt. The first has no log-probability."""

    id: int
    text: str
    logprob: float | None


class _Ending(TypedDict):
    finish_reason: FinishReason
    generated_tokens: int
    seed: NotRequired[int | None]


class Generated(_Ending):
    """The tokens of an answer."""

    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: NotRequired[list[list[Token]]]


class BestOfSequence(Generated):
    """One of the other answers of ``best_of``."""

    generated_text: str


class Details(Generated):
    """Details of an answer."""

    best_of_sequences: NotRequired[list[BestOfSequence] | None]


class GenerateResponse(TypedDict):
    """An answer."""

    generated_text: str
    details: NotRequired[Details | None]


class StreamDetails(_Ending):
    """Finish reason, seed and token counts."""

    input_length: int


class StreamResponse(TypedDict):
    """A token of a stream. The last has the whole text, and the details if requested."""

    index: int
    token: Token
    top_tokens: NotRequired[list[Token]]
    generated_text: NotRequired[str | None]
    details: NotRequired[StreamDetails | None]
