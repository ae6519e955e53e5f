"""Functions of native/sampling.cpp: choice of tokens, masks and the largest logits."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from app.engine.llama.native import NativeSampling, native_function

Logits = NDArray[np.float32]  # of one position, shape (vocabulary,)


class NoTokenError(ValueError):
    """No token can be chosen."""

    def __init__(self) -> None:
        super().__init__("no token has a finite logit")


class Sampler:
    """Chooses tokens from rows of logits and counts them for the penalties.

    The order is that of llama.cpp (``common/sampling.cpp``): bias, penalties, top_k, typical_p, top_p, min_p,
    temperature.
    """

    def __init__(
        self,
        *,
        temperature: float,
        top_k: int = 0,
        typical_p: float = 1.0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        repeat_last_n: int = 0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        bias: Mapping[int, float] | None = None,
        prompt: Sequence[int] = (),
    ) -> None:
        """Create a sampler; the defaults switch each part off.

        Args:
            temperature: 0 chooses the most likely token.
            top_k: Keep this many tokens of the highest probability; 0 keeps all.
            typical_p: Locally typical sampling: keep tokens with information near the entropy (Meister 2022).
            top_p: Nucleus sampling: keep the most probable tokens up to this sum (Holtzman et al. 2020).
            min_p: Keep tokens with at least this part of the highest probability.
            repetition_penalty: Divides positive logits and multiplies negative ones (Keskar et al. 2019).
            repeat_last_n: Number of last tokens that the repetition penalty counts.
            presence_penalty: Subtracted from the logits of tokens that this sampler has chosen.
            frequency_penalty: The same for each time that it has chosen the token.
            bias: Added to the logits of tokens. Minus infinity forbids a token.
            prompt: Tokens before the first one chosen, for the repetition penalty.
        """
        bias = bias or {}
        params = NativeSampling(
            temperature, top_p, min_p, typical_p,
            repetition_penalty, presence_penalty, frequency_penalty,
            top_k, repeat_last_n, len(bias), len(prompt),
            (lib.llama_logit_bias * len(bias))(*(lib.llama_logit_bias(t, b) for t, b in bias.items())),
            (ctypes.c_int32 * len(prompt))(*prompt),
        )  # fmt: skip
        create = native_function("tokenstream_sampler_new", ctypes.c_void_p, ctypes.POINTER(NativeSampling))
        self._sample = native_function(
            "tokenstream_sampler_sample",
            ctypes.c_int32,
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_double),
        )
        self._handle = create(params)

    def sample(self, logits: Logits, place: float) -> int:
        """Choose a token.

        Args:
            logits: Are modified during the call and restored before it returns.
            place: Place in the cumulative distribution, uniformly random from 0 to 1 (exclusive).

        Raises:
            NoTokenError: No logit is finite.
        """
        token: int = self._sample(self._handle, _address(logits), len(logits), place)
        if token < 0:
            raise NoTokenError
        return token

    def close(self) -> None:
        if self._handle:
            native_function("tokenstream_sampler_free", None, ctypes.c_void_p)(self._handle)
            self._handle = None


def mask_logits(logits: Logits, allowed: bytes) -> None:
    """Set logits to minus infinity, in place, where a bit of ``allowed`` is 0.

    Args:
        logits: One row.
        allowed: One bit per token, the lowest of each byte first. Its length is a multiple of 4 bytes.
    """
    if len(allowed) * 8 < len(logits) or len(allowed) % 4:
        raise ValueError(f"a mask of {len(allowed)} bytes does not fit {len(logits)} tokens")
    mask = native_function("tokenstream_mask", None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p)
    mask(_address(logits), len(logits), allowed)


def top_tokens(logits: Logits, n_top: int) -> tuple[float, list[int]]:
    """The tokens of the ``n_top`` highest logits, and the logarithm of the sum of all ``exp(logit)``.

    Of equal logits, the lower token is first.
    """
    tokens = (ctypes.c_int32 * min(n_top, len(logits)))()
    top = native_function(
        "tokenstream_top_tokens",
        ctypes.c_double,
        *(ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p),
    )
    log_sum: float = top(_address(logits), len(logits), len(tokens), ctypes.addressof(tokens))
    return log_sum, list(tokens)


def _address(logits: Logits) -> int:
    assert logits.flags.c_contiguous
    return logits.ctypes.data
