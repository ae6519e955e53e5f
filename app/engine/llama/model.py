"""A model's weights and its vocabulary."""

from __future__ import annotations

import ctypes
import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

from app.engine.llama.native import (
    ModelLoadError,
    drop_mapped_pages,
    last_error,
    native_function,
    start_backend,
    start_matmul,
)
from app.machine.progress import Progress

logger = logging.getLogger("tokenstream.llama")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A loaded LoRA adapter, and the factor of its additions."""

    handle: int
    scale: float


class Model:
    """The weights of one GGUF. Close it after every Context that uses it."""

    def __init__(
        self, path: Path, *, gpu_layers: int = 0, main_gpu: int = 0, vocab_only: bool = False
    ) -> None:
        """Load the weights.

        Args:
            path: A GGUF file; for a split model, its first part.
            gpu_layers: Layers to offload to a GPU; -1 is all.
            main_gpu: Index of that GPU.
            vocab_only: Load only vocabulary and metadata, enough to tokenize.

        Raises:
            ModelLoadError: llama.cpp rejects the file.
        """
        start_backend()
        if not vocab_only:
            start_matmul()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 2**31 - 1 if gpu_layers < 0 else gpu_layers
        params.main_gpu = main_gpu
        params.vocab_only = vocab_only
        self.path = path
        progress = Progress(logger, f"loading {path.name}")

        def on_progress(done: float, _data: Any) -> bool:
            progress.report(done)
            return True  # continue

        params.progress_callback = callback = lib.llama_progress_callback(on_progress)
        with drop_mapped_pages():
            self._handle = lib.llama_model_load_from_file(str(path).encode(), params)
        del callback  # after its last call
        if not self._handle:
            raise ModelLoadError(last_error("no reason given"))
        self.vocab = Vocab(lib.llama_model_get_vocab(self._handle))
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(self._handle)
        self.n_params: int = lib.llama_model_n_params(self._handle)
        self.n_bytes: int = lib.llama_model_size(self._handle)
        # Tokens of the sliding window; 0: the model has none.
        self.n_window: int = lib.llama_model_n_swa(self._handle)
        # A recurrent state covers the whole text and cannot be truncated.
        is_hybrid = lib.llama_model_is_hybrid(self._handle)
        self.is_recurrent: bool = lib.llama_model_is_recurrent(self._handle) or is_hybrid
        self.has_attention: bool = is_hybrid or not self.is_recurrent
        self.is_truncatable: bool = not (self.is_recurrent or self.n_window)
        template = lib.llama_model_chat_template(self._handle, None)
        self.chat_template: str | None = template.decode("utf-8", "replace") if template else None
        self.adapters: dict[str, Adapter] = {}  # by name
        # Of a reranker: a text with {query} and {document}.
        template = lib.llama_model_chat_template(self._handle, b"rerank")
        self.rerank_template: str | None = template.decode("utf-8", "replace") if template else None

    @property
    def description(self) -> str:
        """Architecture, size and format, such as ``llama 134.52M Q4_1``."""
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._handle, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def load_adapter(self, name: str, path: Path, scale: float = 1.0) -> None:
        """Load a LoRA adapter: low-rank additions to the weights. The model frees it.

        Load all adapters before the first Context: they determine the size of its graphs.

        Args:
            name: A key of ``adapters``.
            path: A GGUF of type ``adapter``.
            scale: Factor of the additions.

        Raises:
            ModelLoadError: llama.cpp rejects the file.
        """
        load = native_function("llama_adapter_lora_init", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
        handle = load(self._handle, str(path).encode())
        if not handle:
            raise ModelLoadError(last_error("no reason given"))
        self.adapters[name] = Adapter(handle, scale)

    def close(self) -> None:
        if self._handle:
            lib.llama_model_free(self._handle)
            self._handle = None


class Vocab:
    """The vocabulary of a model: text to token ids, token ids to bytes."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.n_tokens: int = lib.llama_vocab_n_tokens(handle)
        self.bos: int = lib.llama_vocab_bos(handle)  # -1: none
        self.eos: int = lib.llama_vocab_eos(handle)
        self.sep: int = lib.llama_vocab_sep(handle)  # -1: none
        self.add_bos: bool = lib.llama_vocab_get_add_bos(handle)
        self.add_eos: bool = lib.llama_vocab_get_add_eos(handle)
        self.add_sep: bool = lib.llama_vocab_get_add_sep(handle)
        self.is_sentencepiece: bool = lib.llama_vocab_type(handle) == lib.LLAMA_VOCAB_TYPE_SPM
        # Fill-in-the-middle tokens: prefix, suffix, middle. -1: the model has none.
        self.fill_in: tuple[int, int, int] = (
            lib.llama_vocab_fim_pre(handle),
            lib.llama_vocab_fim_suf(handle),
            lib.llama_vocab_fim_mid(handle),
        )
        self._pieces: dict[int, bytes] = {}

    def text(self, token: int) -> str:
        """The vocabulary's entry, such as ``<|im_end|>`` or ``Ġthe``; empty for an unknown id."""
        if not 0 <= token < self.n_tokens:
            return ""
        return str(lib.llama_vocab_get_text(self._handle, token).decode("utf-8", "replace"))

    def piece(self, token: int) -> bytes:
        """The bytes that the token adds to a text. Control tokens add none."""
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
        """Tokenize ``text``.

        Args:
            text: Lone surrogates become replacement characters.
            parse_special: Convert the strings of control tokens to these tokens.
            add_special: Add tokens around the text, such as BOS, or CLS and SEP.
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
        return bool(lib.llama_vocab_is_eog(self._handle, token))

    @functools.cached_property
    def end_of_generation(self) -> frozenset[int]:
        return frozenset(t for t in range(self.n_tokens) if self.is_end_of_generation(t))

    @functools.cached_property
    def control_tokens(self) -> dict[str, int]:
        """Ids of control tokens and the unknown token, by text. They never represent plain text."""
        marked = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        return {self.text(t): t for t in range(self.n_tokens) if self._attributes(t) & marked}

    @functools.cached_property
    def added_tokens(self) -> dict[str, int]:
        """Ids of user-defined tokens, by text. The tokenizer recognizes them even in plain text."""
        marked = lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        return {self.text(t): t for t in range(self.n_tokens) if self._attributes(t) & marked}

    def is_unused(self, token: int) -> bool:
        """Whether the token is padding of the vocabulary."""
        return bool(self._attributes(token) & lib.LLAMA_TOKEN_ATTR_UNUSED)

    def _attributes(self, token: int) -> int:
        return int(lib.llama_vocab_get_attr(self._handle, token))
