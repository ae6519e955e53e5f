"""TOKENIZER_REPO: chat template and special tokens from a repository or folder."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.config.settings import Settings
from app.weights.errors import ModelError
from app.weights.model import hub_token
from app.weights.repository import Repository

logger = logging.getLogger("tokenstream.hub")

_FILES = ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json")
# Texts of padding ids, added by converters to round up the size of the vocabulary.
_PADDING = re.compile(r"\[PAD\d*\]|<\|?(dummy|unused|extra|reserved)\w*\|?>|\[unused\d+\]", re.IGNORECASE)
# Maximum share of ids with different texts: fine-tunes rename reserved tokens.
_TOLERATED = 0.01


@dataclass(frozen=True)
class TokenizerRepo:
    """Contents of tokenizer files; missing entries are None."""

    name: str
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    templates: Mapping[str, str] = field(default_factory=dict)  # other templates by name, such as tool_use
    vocab: Mapping[int, str] = field(default_factory=dict, repr=False)  # token id → text

    @property
    def n_vocab(self) -> int:
        """Size of the vocabulary: highest id plus 1; 0 without a vocabulary."""
        return max(self.vocab, default=-1) + 1


def load_tokenizer_repo(settings: Settings) -> TokenizerRepo | None:
    """Read the tokenizer of TOKENIZER_REPO: a folder, or a repository of the hub.

    Returns:
        None if TOKENIZER_REPO is not set.

    Raises:
        ModelError: The files cannot be found, downloaded or read.
    """
    name = settings.tokenizer_repo
    if name is None:
        return None
    folder = Path(name).expanduser()
    if folder.is_dir():
        files = {file: folder / file for file in _FILES if (folder / file).is_file()}
    elif folder.exists() or name.startswith((".", "~", "/")):
        raise ModelError(f"TOKENIZER_REPO={name} is not a folder: name the folder of tokenizer_config.json")
    else:
        files = _download(settings, name)
    if not files:
        raise ModelError(
            f"TOKENIZER_REPO={name} contains none of {', '.join(_FILES)}: "
            "name the model's original repository"
        )
    tokenizer = _read(name, files)
    if not tokenizer.vocab:
        logger.warning(
            "TOKENIZER_REPO=%s has no tokenizer.json: its vocabulary is not compared with the model's", name
        )
    return tokenizer


def _download(settings: Settings, name: str) -> dict[str, Path]:
    repository = Repository(
        name, folder=settings.models_dir, token=hub_token(settings), variable="TOKENIZER_REPO"
    )
    there = repository.files()
    wanted = [file for file in _FILES if file in there]
    if not wanted and repository.failure:
        raise repository.failure
    return dict(zip(wanted, repository.fetch(wanted), strict=True)) if wanted else {}


# --- reading the files


def _read(name: str, files: Mapping[str, Path]) -> TokenizerRepo:
    config = _read_json(name, files.get("tokenizer_config.json"))
    templates = _templates(config.get("chat_template"))
    if "chat_template.jinja" in files:
        templates["default"] = _read_text(name, files["chat_template.jinja"])
    return TokenizerRepo(
        name=name,
        chat_template=templates.pop("default", None),
        templates=templates,
        vocab=_vocabulary(name, _read_json(name, files.get("tokenizer.json"))),
        **{key: _token_text(config.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")},
    )


def _read_text(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ModelError(f"TOKENIZER_REPO={name}: {path} cannot be read ({error})") from error


def _read_json(name: str, path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(_read_text(name, path))
    except ValueError as error:
        raise ModelError(f"TOKENIZER_REPO={name}: {path} is not JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"TOKENIZER_REPO={name}: {path} should be a JSON object")
    return content


def _templates(value: Any) -> dict[str, str]:
    """Templates by name, from a template or a list of named templates."""
    if isinstance(value, str):
        return {"default": value}
    entries = value if isinstance(value, list) else []
    return {
        entry["name"]: entry["template"]
        for entry in entries
        if isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("template"), str)
    }


def _token_text(value: Any) -> str | None:
    """Text of a special token, which is a string or an AddedToken object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _vocabulary(name: str, tokenizer: dict[str, Any]) -> dict[int, str]:
    try:
        entries = tokenizer.get("model", {}).get("vocab", {})
        if isinstance(entries, dict):  # BPE, WordPiece, WordLevel: text → id
            vocabulary = {int(token): text for text, token in entries.items()}
        else:  # Unigram: (text, score), ordered by id
            vocabulary = {token: str(text) for token, (text, _) in enumerate(entries)}
        added = tokenizer.get("added_tokens") or []
        return vocabulary | {int(token["id"]): str(token["content"]) for token in added}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"TOKENIZER_REPO={name}: the vocabulary of tokenizer.json has an unknown format"
        ) from error


# --- comparison with the GGUF file


def check_vocabulary(
    repo: TokenizerRepo, n_vocab: int, token_text: Callable[[int], str], is_unused: Callable[[int], bool]
) -> None:
    """Reject a tokenizer whose vocabulary differs from the model's. A missing vocabulary is accepted.

    The model may have more ids at the end: converters pad vocabularies, and fine-tunes add tokens.

    Args:
        repo: The tokenizer.
        n_vocab: Size of the model's vocabulary.
        token_text: Text of an id of the model, in the notation of its vocabulary.
        is_unused: Whether an id of the model is padding.

    Raises:
        ModelError: The vocabularies differ; the message has both sizes and an example.
    """
    if not repo.vocab:
        return
    sizes = f"{repo.n_vocab:,} tokens, the model's {n_vocab:,}"
    mismatch = f"TOKENIZER_REPO={repo.name} does not match the model: its vocabulary has {sizes}"
    advice = "name the repository that the GGUF was converted from, or unset TOKENIZER_REPO"
    if repo.n_vocab > n_vocab:
        raise ModelError(f"{mismatch}: {advice}")
    differing = [
        token
        for token, text in repo.vocab.items()
        if not is_unused(token) and not _same(text, token_text(token))
    ]
    surplus = range(repo.n_vocab, n_vocab)
    padded = all(is_unused(token) or _PADDING.fullmatch(token_text(token)) for token in surplus)
    if len(differing) > (_TOLERATED * len(repo.vocab) if padded else 0):
        token = min(differing)
        example = f"token {token} is {repo.vocab[token]!r}, the model's {token_text(token)!r}"
        raise ModelError(f"{mismatch}, and {len(differing):,} differ ({example}): {advice}")


def _same(text: str, gguf_text: str) -> bool:
    # In some added tokens converters write spaces as SentencePiece does.
    return text == gguf_text or text.replace("\u2581", " ") == gguf_text.replace("\u2581", " ")
