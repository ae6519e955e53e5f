"""A model's weights and its vocabulary."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

from app.engine.llama.native import ModelLoadError, last_complaint, mapped_files_come_as_needed, start_backend


class Model:
    """The weights of one GGUF. Close it after every Context made of it."""

    def __init__(
        self, path: Path, *, gpu_layers: int = 0, main_gpu: int = 0, vocab_only: bool = False
    ) -> None:
        """Load the weights of ``path`` (for a split model its first part).

        Args:
            path: A GGUF file.
            gpu_layers: Layers to offload to a GPU; -1 is all.
            main_gpu: The GPU that gets them.
            vocab_only: Load the vocabulary and the metadata alone: it tokenizes, it cannot decode.

        Raises:
            ModelLoadError: llama.cpp refuses the file.
        """
        start_backend()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 2**31 - 1 if gpu_layers < 0 else gpu_layers
        params.main_gpu = main_gpu
        params.vocab_only = vocab_only
        self.path = path
        with mapped_files_come_as_needed():
            self._handle = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._handle:
            raise ModelLoadError(last_complaint("llama.cpp gave no reason"))
        self.vocab = Vocab(lib.llama_model_get_vocab(self._handle))
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(self._handle)
        self.n_params: int = lib.llama_model_n_params(self._handle)
        self.n_bytes: int = lib.llama_model_size(self._handle)
        # How many tokens layers with a sliding window look back on; 0 where there are none.
        self.n_window: int = lib.llama_model_n_swa(self._handle)
        # A recurrent state is one for the whole text before: it cannot be cut back to an earlier token.
        self.is_recurrent: bool = lib.llama_model_is_recurrent(self._handle) or lib.llama_model_is_hybrid(
            self._handle
        )
        template = lib.llama_model_chat_template(self._handle, None)
        self.chat_template: str | None = template.decode("utf-8", "replace") if template else None

    @property
    def description(self) -> str:
        """Architecture, size and format, such as ``llama 134.52M Q4_1``."""
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._handle, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def close(self) -> None:
        """Free the weights."""
        if self._handle:
            lib.llama_model_free(self._handle)
            self._handle = None


class Vocab:
    """The vocabulary of a model: texts to token ids and token ids to bytes."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.n_tokens: int = lib.llama_vocab_n_tokens(handle)
        self.bos: int = lib.llama_vocab_bos(handle)  # -1: there is none
        self.eos: int = lib.llama_vocab_eos(handle)
        self.add_bos: bool = lib.llama_vocab_get_add_bos(handle)
        self.is_sentencepiece: bool = lib.llama_vocab_type(handle) == lib.LLAMA_VOCAB_TYPE_SPM
        # Tokens around what is to be filled in: before the text before it, before the text behind it, and
        # at the gap; -1 where the model has not learned that.
        self.fill_in: tuple[int, int, int] = (
            lib.llama_vocab_fim_pre(handle),
            lib.llama_vocab_fim_suf(handle),
            lib.llama_vocab_fim_mid(handle),
        )
        self._pieces: dict[int, bytes] = {}

    def text(self, token: int) -> str:
        """The token as the vocabulary writes it, such as ``<|im_end|>`` or ``Ġthe``; empty for no token."""
        if not 0 <= token < self.n_tokens:
            return ""
        return str(lib.llama_vocab_get_text(self._handle, token).decode("utf-8", "replace"))

    def piece(self, token: int) -> bytes:
        """The bytes that the token adds to a text; none for control tokens."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def _read_piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        size = lib.llama_token_to_piece(self._handle, token, buffer, len(buffer), 0, False)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = lib.llama_token_to_piece(self._handle, token, buffer, len(buffer), 0, False)
        return buffer.raw[:size]

    def tokenize(self, text: str, *, parse_special: bool, add_special: bool = False) -> list[int]:
        """The tokens of ``text``.

        Args:
            text: Any text; lone surrogates become replacement characters.
            parse_special: Whether the strings of control tokens are read as those tokens.
            add_special: Whether the vocabulary puts its own tokens around it, such as BOS or CLS and SEP.
        """
        data = text.encode("utf-8", "replace")
        tokens = (lib.llama_token * (len(data) + 2))()
        count = lib.llama_tokenize(
            self._handle, data, len(data), tokens, len(tokens), add_special, parse_special
        )
        if count < 0:
            raise ValueError(f"a text of {len(data)} bytes cannot be tokenized")
        return list(tokens[:count])

    def is_end_of_generation(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        return bool(lib.llama_vocab_is_eog(self._handle, token))

    @functools.cached_property
    def end_of_generation(self) -> frozenset[int]:
        """All tokens with which the model may end its answer."""
        return frozenset(t for t in range(self.n_tokens) if self.is_end_of_generation(t))

    @functools.cached_property
    def control_tokens(self) -> dict[str, int]:
        """Text to id of the tokens that are control tokens or unknown: none of them is plain text."""
        marked = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        return {self.text(t): t for t in range(self.n_tokens) if self._attributes(t) & marked}

    @functools.cached_property
    def added_tokens(self) -> dict[str, int]:
        """Text to id of the tokens that were added to the vocabulary and are read even in plain text."""
        marked = lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        return {self.text(t): t for t in range(self.n_tokens) if self._attributes(t) & marked}

    def is_unused(self, token: int) -> bool:
        """Whether the token only pads the vocabulary."""
        return bool(self._attributes(token) & lib.LLAMA_TOKEN_ATTR_UNUSED)

    def _attributes(self, token: int) -> int:
        return int(lib.llama_vocab_get_attr(self._handle, token))
