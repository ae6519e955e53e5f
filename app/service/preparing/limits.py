"""Limits of a request's tokens."""

from __future__ import annotations

from dataclasses import dataclass

from app.config.settings import Settings, SettingsError


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """Maximum tokens of a prompt (``input``), and of prompt plus answer (``total``)."""

    input: int
    total: int

    @classmethod
    def of(cls, settings: Settings, n_ctx_sequence: int) -> TokenLimits:
        """The limits of the settings.

        Raises:
            SettingsError: A limit exceeds the KV cache of a sequence.
        """
        total = n_ctx_sequence if settings.max_total_tokens is None else settings.max_total_tokens
        if total > n_ctx_sequence:
            raise SettingsError(
                f"MAX_TOTAL_TOKENS={total}: should be at most {n_ctx_sequence}, the KV cache of a sequence; "
                "raise N_CTX or lower MAX_SEQUENCES"
            )
        longest = total - 1 if settings.max_input_length is None else settings.max_input_length
        if longest >= total:
            raise SettingsError(
                f"MAX_INPUT_LENGTH={longest}: should be below the maximum length of a request, {total}"
            )
        return cls(longest, total)
