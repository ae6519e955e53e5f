"""``python -m app detect-watermark``: whether a text was generated with ``watermark``."""

from __future__ import annotations

import sys
from pathlib import Path

from app.config.settings import Settings
from app.engine.llama import Model
from app.engine.sampling.watermark import Detection, Watermark
from app.weights.model import resolve_model

# One text in 30,000 that nobody marked has a z-score above the first, one in 40 above the second.
_MARKED, _UNMARKED = 4.0, 2.0


class TextError(Exception):
    """A text that cannot be looked at; the message says why."""


def detect_watermark(settings: Settings, file: Path | None) -> None:
    """Count the green tokens of a text and say what that means.

    Args:
        settings: The model, and the watermark's gamma.
        file: Where the text is; None is standard input.

    Raises:
        TextError: It cannot be read, or has too few tokens to count anything.
        ModelError: The model cannot be had.
        ModelLoadError: llama.cpp refuses it.
    """
    text = _read(file)
    model = Model(resolve_model(settings), vocab_only=True)
    try:
        tokens = model.vocab.tokenize(text, parse_special=False)
        watermark = Watermark(settings.watermark_gamma, settings.watermark_delta)
        found = watermark.detect(tokens, model.vocab.n_tokens)
    finally:
        model.close()
    if not found.n_tokens:
        raise TextError("the text should have at least two tokens")
    print(f"tokens   {found.n_tokens} (pairs that come again count once)")
    print(f"green    {found.n_green / found.n_tokens:.1%} (by chance {found.gamma:.1%})")
    print(f"z-score  {found.z_score:.2f}")
    print(f"verdict  {verdict(found)}")


def verdict(found: Detection) -> str:
    """What was counted, in words."""
    if found.z_score >= _MARKED:
        return f"marked: by chance a text comes this far with probability {found.p_value:.1g}"
    if found.highest_z_score < _MARKED:
        return "cannot be told: the text is too short"
    if found.z_score < _UNMARKED:
        return "not marked, or marked with another model or another WATERMARK_GAMMA"
    return f"cannot be told: by chance a text comes this far with probability {found.p_value:.1g}"


def _read(file: Path | None) -> str:
    name = "standard input" if file is None else str(file)
    try:
        data = sys.stdin.buffer.read() if file is None else file.read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise TextError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TextError(f"{name} is not UTF-8 text: {error.reason} at byte {error.start}") from error
