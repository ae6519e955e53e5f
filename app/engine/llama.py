"""The low-level face of llama.cpp: model, vocabulary, context with its KV memory, batch, sampler chain.

The only module that imports llama_cpp. Everything here is a thin, typed owner of one native
object; what to compute, and when, is decided in scheduler.py and engine.py.
Source of every call: llama.cpp's ``include/llama.h`` and ``ggml-cpu.h``.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger("tokenstream.llama")

# How long ggml's threads spin for the next piece of work before they sleep, in ggml's own measure
# (0 never, 100 always): 50 bridges the gaps between decode steps and still sleeps when idle.
_POLL = 50


class ModelLoadError(Exception):
    """llama.cpp could not load a model or make a context for it; the message is its own last complaint."""


class DecodeError(Exception):
    """``llama_decode`` failed; ``code`` is its return value (1: no room in KV memory, below 0: fatal)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"llama_decode returned {code}")
        self.code = code


# --- logging: llama.cpp's own lines at debug level; the last complaint is kept for error messages

_last_complaint = ""


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _user_data: object) -> None:
    global _last_complaint
    line = text.decode("utf-8", "replace").rstrip("\n")
    if level in (3, 4) and line:  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR
        if level == 4:
            _last_complaint = line
        logger.debug("%s", line)


@functools.cache
def start_backend() -> None:
    """Set llama.cpp up, once."""
    lib.llama_log_set(_on_log, ctypes.c_void_p(0))
    lib.llama_backend_init()


def last_complaint(otherwise: str) -> str:
    """The last error that llama.cpp logged."""
    # llama.cpp prefixes its lines with the C function that complains: of no use to the reader.
    return _last_complaint.partition(": ")[2] or otherwise


def native_function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of ggml that llama_cpp does not wrap.

    It is looked up through libllama, which depends on ggml. To load ggml's libraries by their paths would
    load them twice: a wheel holds copies where a build has links to one file.
    """
    function = getattr(lib._lib, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


# --- model and vocabulary


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
        self._handle = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._handle:
            raise ModelLoadError(last_complaint("llama.cpp gave no reason"))
        self.vocab = Vocab(lib.llama_model_get_vocab(self._handle))
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(self._handle)
        self.n_params: int = lib.llama_model_n_params(self._handle)
        self.n_bytes: int = lib.llama_model_size(self._handle)
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

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """The tokens of ``text``, without a BOS or EOS of the vocabulary's own accord.

        Args:
            text: Any text; lone surrogates become replacement characters.
            parse_special: Whether the strings of control tokens are read as those tokens.
        """
        data = text.encode("utf-8", "replace")
        tokens = (lib.llama_token * (len(data) + 2))()
        count = lib.llama_tokenize(self._handle, data, len(data), tokens, len(tokens), False, parse_special)
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


# --- computing


class _ThreadPoolParams(ctypes.Structure):
    _fields_ = (
        ("cpumask", ctypes.c_bool * 512),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


class ThreadPool:
    """Threads of ggml that stay between decodes; without a pool ggml starts new ones for every decode."""

    def __init__(self, n_threads: int) -> None:
        defaults = native_function("ggml_threadpool_params_default", _ThreadPoolParams, ctypes.c_int)
        create = native_function("ggml_threadpool_new", ctypes.c_void_p, ctypes.POINTER(_ThreadPoolParams))
        params = defaults(n_threads)
        params.poll = _POLL
        self.handle = create(ctypes.byref(params))
        if not self.handle:
            raise ModelLoadError(f"a pool of {n_threads} threads cannot be started; lower MODEL_THREADS")

    def close(self) -> None:
        """Stop the threads; the context they were attached to must be gone."""
        if self.handle:
            native_function("ggml_threadpool_free", None, ctypes.c_void_p)(self.handle)
            self.handle = None


class Batch:
    """The tokens of one ``llama_decode``: which token, at which position, of which sequence.

    The arrays are numpy's and are filled by slices: one token costs no Python loop.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.n_tokens = 0
        self._token: NDArray[np.int32] = np.zeros(capacity, np.int32)
        self._position: NDArray[np.int32] = np.zeros(capacity, np.int32)
        self._sequence: NDArray[np.int32] = np.zeros(capacity, np.int32)
        self._wants_logits: NDArray[np.int8] = np.zeros(capacity, np.int8)
        self._one_each: NDArray[np.int32] = np.ones(capacity, np.int32)
        # llama_batch.seq_id is an array of pointers, one list of sequence ids a token; each list here
        # is one element of _sequence.
        self._sequence_pointers: NDArray[np.uint64] = np.arange(capacity, dtype=np.uint64)
        self._sequence_pointers *= np.uint64(4)
        self._sequence_pointers += np.uint64(self._sequence.ctypes.data)

        def pointer(array: NDArray[Any], kind: Any) -> Any:
            return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))

        self.native = lib.llama_batch(
            n_tokens=0,
            token=pointer(self._token, lib.llama_token),
            embd=None,
            pos=pointer(self._position, lib.llama_pos),
            n_seq_id=pointer(self._one_each, ctypes.c_int32),
            seq_id=pointer(self._sequence_pointers, ctypes.POINTER(lib.llama_seq_id)),
            logits=pointer(self._wants_logits, ctypes.c_int8),
        )

    def clear(self) -> None:
        """Empty the batch."""
        self.n_tokens = 0

    def add(self, tokens: Sequence[int], position: int, sequence: int, *, logits: bool) -> int:
        """Append consecutive ``tokens`` of a sequence; ``logits`` asks for those of the last one.

        Returns:
            The index in the batch of the last token, by which its logits are found after the decode.
        """
        begin, end = self.n_tokens, self.n_tokens + len(tokens)
        self._token[begin:end] = tokens
        self._position[begin:end] = range(position, position + len(tokens))
        self._sequence[begin:end] = sequence
        self._wants_logits[begin:end] = 0
        self._wants_logits[end - 1] = logits
        self.n_tokens = end
        return end - 1


class Context:
    """KV memory for ``n_sequences`` sequences and the threads that compute on it.

    The KV memory is split evenly: each sequence has ``n_ctx_sequence`` cells of its own. A decode is
    one pass over the weights for sequences whose ids follow one another without a gap; a gap costs
    another pass (``llama_batch_allocr::split_equal``), so callers keep the ids dense.
    """

    def __init__(self, model: Model, *, n_ctx: int, n_sequences: int, n_batch: int, n_threads: int) -> None:
        """Reserve KV memory and compute buffers.

        Raises:
            ModelLoadError: llama.cpp cannot make the context, most likely for want of memory.
        """
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = n_ctx, n_sequences
        params.n_batch, params.n_ubatch = n_batch, min(n_batch, 512)
        params.n_outputs_max = n_sequences
        params.n_threads = params.n_threads_batch = n_threads
        params.kv_unified = False
        params.no_perf = True
        self._handle = lib.llama_init_from_model(model._handle, params)
        if not self._handle:
            reason = last_complaint("llama.cpp gave no reason")
            raise ModelLoadError(f"no KV memory for N_CTX={n_ctx} tokens: {reason}; lower N_CTX")
        self.n_sequences = n_sequences
        self.n_batch = n_batch
        self.n_ctx_sequence: int = lib.llama_n_ctx_seq(self._handle)
        self._memory = lib.llama_get_memory(self._handle)
        self._threads = ThreadPool(n_threads)
        attach = native_function(
            "llama_attach_threadpool", None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
        )
        attach(self._handle, self._threads.handle, self._threads.handle)

    def decode(self, batch: Batch) -> None:
        """Compute the batch: its tokens enter KV memory, logits become available.

        Raises:
            DecodeError: llama.cpp could not.
        """
        batch.native.n_tokens = batch.n_tokens
        code = lib.llama_decode(self._handle, batch.native)
        if code != 0:
            raise DecodeError(code)

    def move_sequence(self, source: int, target: int) -> None:
        """Let ``target`` have what ``source`` has in KV memory, and empty ``source``."""
        lib.llama_memory_seq_rm(self._memory, target, -1, -1)
        lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        lib.llama_memory_seq_rm(self._memory, source, -1, -1)

    def clear_sequence(self, sequence: int) -> None:
        """Free the KV memory of a sequence."""
        lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def sequence_length(self, sequence: int) -> int:
        """How many tokens of a sequence are in KV memory."""
        return int(lib.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def close(self) -> None:
        """Free KV memory, buffers and threads."""
        if self._handle:
            lib.llama_free(self._handle)
            self._handle = None
            self._threads.close()


class Sampler:
    """A chain of llama.cpp's samplers: logits in, one token out.

    The methods from ``logit_bias`` to ``draw`` append a sampler; a chain ends with ``greedy`` or ``draw``.
    """

    def __init__(self, vocab: Vocab) -> None:
        self._n_vocab = vocab.n_tokens
        self._handle = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

    def logit_bias(self, bias: Mapping[int, float]) -> None:
        """Add to the logits of some tokens; minus infinity forbids a token."""
        native = (lib.llama_logit_bias * len(bias))(*(lib.llama_logit_bias(t, b) for t, b in bias.items()))
        self._add(lib.llama_sampler_init_logit_bias(self._n_vocab, len(bias), native))

    def penalties(
        self, last_n: int, repetition: float, frequency: float, presence: float, seen: Sequence[int]
    ) -> None:
        """Penalize tokens among the ``last_n`` last ones; ``seen`` are those before the first is sampled."""
        sampler = lib.llama_sampler_init_penalties(self._n_vocab, last_n, repetition, frequency, presence)
        for token in seen[-last_n:]:
            lib.llama_sampler_accept(sampler, token)
        self._add(sampler)

    def top_k(self, k: int) -> None:
        """Keep the ``k`` likeliest tokens."""
        self._add(lib.llama_sampler_init_top_k(k))

    def typical_p(self, p: float) -> None:
        """Keep the tokens whose surprise is nearest to the expected one (Meister et al. 2022)."""
        self._add(lib.llama_sampler_init_typical(p, 1))

    def top_p(self, p: float) -> None:
        """Keep the likeliest tokens that together have probability ``p`` (Holtzman et al. 2020)."""
        self._add(lib.llama_sampler_init_top_p(p, 1))

    def min_p(self, p: float) -> None:
        """Keep the tokens with at least ``p`` times the probability of the likeliest."""
        self._add(lib.llama_sampler_init_min_p(p, 1))

    def temperature(self, temperature: float) -> None:
        """Divide the logits by ``temperature``."""
        self._add(lib.llama_sampler_init_temp(temperature))

    def greedy(self) -> None:
        """Choose the likeliest token."""
        self._add(lib.llama_sampler_init_greedy())

    def draw(self, seed: int) -> None:
        """Draw a token by its probability."""
        self._add(lib.llama_sampler_init_dist(seed))

    def _add(self, sampler: Any) -> None:
        lib.llama_sampler_chain_add(self._handle, sampler)

    def sample(self, context: Context, index: int) -> int:
        """Choose the token after the batch's token ``index`` and let the chain know it."""
        return int(lib.llama_sampler_sample(self._handle, context._handle, index))

    def close(self) -> None:
        """Free the chain and its samplers."""
        if self._handle:
            lib.llama_sampler_free(self._handle)
            self._handle = None


def smoke_decode(path: Path, *, n_threads: int, gpu_layers: int, main_gpu: int = 0) -> int:
    """Load the model, decode one small batch, and choose a token: proof that the native library runs here.

    Returns:
        The chosen token.
    """
    model = Model(path, gpu_layers=gpu_layers, main_gpu=main_gpu)
    context = Context(model, n_ctx=256, n_sequences=1, n_batch=64, n_threads=n_threads)
    batch, sampler = Batch(64), Sampler(model.vocab)
    sampler.greedy()
    # More than one token, so that the matrix-matrix kernels (AMX among them) run and not only the
    # matrix-vector ones.
    index = batch.add([model.vocab.bos if model.vocab.bos >= 0 else 0] * 32, 0, 0, logits=True)
    context.decode(batch)
    token = sampler.sample(context, index)
    sampler.close()
    context.close()
    model.close()
    return token
