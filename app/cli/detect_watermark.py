"""``tokenstream detect-watermark``: tests whether a text carries a watermark."""

from __future__ import annotations

import sys
from pathlib import Path

from app.config.errors import UserError
from app.config.settings import Settings
from app.engine.llama import Model
from app.engine.sampling.watermark import Detection, Watermark
from app.service.model.files import readable_load_errors
from app.weights.model import resolve_model

# z-scores. 1 in 30,000 unmarked texts exceeds the first, 1 in 40 the second.
_MARKED, _UNMARKED = 4.0, 2.0


class TextError(UserError):
    """The text cannot be read or is too short."""


def detect_watermark(settings: Settings, file: Path | None) -> None:
    """Count the green tokens of a text and print the verdict.

    Args:
        settings: The model, and the watermark's gamma.
        file: Path of the text; None: standard input.

    Raises:
        UserError: The text or the model cannot be used.
    """
    text = _read(file)
    path = resolve_model(settings)
    with readable_load_errors():
        model = Model(path, vocab_only=True)
    try:
        tokens = model.vocab.tokenize(text, parse_special=False)
        watermark = Watermark(settings.watermark_gamma, settings.watermark_delta)
        found = watermark.detect(tokens, model.vocab.n_tokens)
    finally:
        model.close()
    if not found.n_tokens:
        raise TextError("the text should have at least two tokens")
    print(f"tokens   {found.n_tokens} (repeated pairs count once)")
    print(f"green    {found.n_green / found.n_tokens:.1%} (by chance {found.gamma:.1%})")
    print(f"z-score  {found.z_score:.2f}")
    print(f"verdict  {verdict(found)}")


def verdict(found: Detection) -> str:
    """Describe a detection."""
    if found.z_score >= _MARKED:
        return f"marked: an unmarked text has this score with probability {found.p_value:.1g}"
    if found.highest_z_score < _MARKED:
        return "undecided: the text is too short"
    if found.z_score < _UNMARKED:
        return "not marked, or marked with another model or another WATERMARK_GAMMA"
    return f"undecided: an unmarked text has this score with probability {found.p_value:.1g}"


def _read(file: Path | None) -> str:
    name = "standard input" if file is None else str(file)
    try:
        data = sys.stdin.buffer.read() if file is None else file.read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise TextError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TextError(f"{name} is not UTF-8 text: {error.reason} at byte {error.start}") from error
