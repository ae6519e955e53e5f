"""Memory of a model and its contexts, determined without allocating it.

With ``no_alloc`` (``include/llama.h``) llama.cpp runs its code for loading and reserving, and logs the sizes.
So they are correct for all architectures and number formats. ``common/fit.cpp`` does this for GPUs.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

from app.engine.llama.context import KVOptions, context_params
from app.engine.llama.native import (
    ModelLoadError,
    UnsupportedLibraryError,
    attention_calls,
    captured_log,
    last_error,
    native_function,
    start_matmul,
)

_MIB = 1 << 20

# KVOptions.type: Q8_0 where native/flash_attention.cpp computes with it, else f16. Q8_0 needs half the memory
# and changes perplexity by less than 0.1 % (docs/engine.md).
AUTO_KV_TYPE = "auto"

_PACKED_HEADS = {str(n) for n in range(32, 257, 32)}  # elements; native/flash_attention.cpp, is_covered()

# "load_tensors:   AMX model buffer size =    95.34 MiB". Kinds: weights (model), recurrent states (RS, in
# DeepSeek-V4 "state"), logits (output), intermediate results (compute).
_BUFFER = re.compile(
    r": +(?P<name>\S+) +(?:\S+ )*?(?P<kind>model|RS|state|output|compute) buffer size = +(?P<mib>[\d.]+) MiB"
)
# A simulated KV cache has empty buffers. After a line per layer with its device, another line has the size of
# all tensors.
_EMPTY_KV_BUFFER = re.compile(r" KV buffer size = +0\.00 MiB")
_KV_CACHE = re.compile(r"llama_kv_cache: size = +(?P<mib>[\d.]+) MiB")
_KV_LAYER = re.compile(r"llama_kv_cache: layer +\d+: dev = (?P<name>\S+)")


@dataclass(frozen=True, slots=True)
class ContextMemory:
    """Host memory of one context, in bytes.

    Attributes:
        n_ctx: KV cells, rounded up to a multiple of 256 per sequence.
        kv: Keys, values and the states of recurrent layers; resident from the start.
        buffers: Intermediate results and logits of the largest batch.
    """

    n_ctx: int
    kv: int
    buffers: int


class SimulatedModel:
    """A model without weights. Its contexts cannot compute and need almost no memory.

    Exception: llama.cpp allocates the states of recurrent layers while ``context_memory`` runs.
    """

    def __init__(self, path: Path, *, gpu_layers: int = 0, main_gpu: int = 0) -> None:
        """Read the metadata.

        Args:
            path: A GGUF file; for a split model, its first part.
            gpu_layers: Layers to offload to a GPU; -1 is all. GPU memory is not counted.
            main_gpu: Index of that GPU.

        Raises:
            ModelLoadError: llama.cpp rejects the file.
        """
        start_matmul()
        self._path = path
        self._params = lib.llama_model_default_params()
        self._params.n_gpu_layers = 2**31 - 1 if gpu_layers < 0 else gpu_layers
        self._params.main_gpu = main_gpu
        self._params.load_mode = lib.LLAMA_LOAD_MODE_NONE  # a mapped file would count as memory
        self._params.no_alloc = True
        # Loading the vocabulary takes three quarters of the time and affects no other size. Without it the
        # metadata must contain the number of tokens, which is common but optional.
        self._overrides = (lib.llama_model_kv_override * 2)()  # the second ends the list
        self._overrides[0].tag = lib.LLAMA_KV_OVERRIDE_TYPE_STR
        self._overrides[0].key = b"tokenizer.ggml.model"
        self._overrides[0].value.val_str = b"none"
        self._params.kv_overrides = self._overrides
        self._handle = self._load()
        if not self._handle:
            self._params.kv_overrides = None
            self._handle = self._load()
        if not self._handle:
            raise ModelLoadError(last_error("no reason given"))
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(self._handle)
        self.n_vocab: int = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._handle))
        # A sequence has one recurrent state, independent of its length.
        self.is_recurrent: bool = lib.llama_model_is_recurrent(self._handle) or lib.llama_model_is_hybrid(
            self._handle
        )

    def resolved(self, kv: KVOptions) -> KVOptions:
        """The options with a number format instead of AUTO_KV_TYPE."""
        if kv.type != AUTO_KV_TYPE:
            return kv
        return replace(kv, type="q8_0" if kv.flash_attention is not False and self.packs_kv() else "f16")

    def packs_kv(self) -> bool:
        """Whether native/flash_attention.cpp computes with K and V of this model in Q8_0.

        It does for heads of up to 256 elements, in blocks of 32, with keys and values of equal length.
        """
        if attention_calls() is None or self._params.n_gpu_layers or self._metadata("attention.kv_lora_rank"):
            return False
        heads = lib.llama_model_n_head(self._handle)
        default = str(lib.llama_model_n_embd(self._handle) // heads) if heads else "0"
        key, value = (self._metadata(f"attention.{name}_length") or default for name in ("key", "value"))
        # Layers with a sliding window can have other heads.
        window_key = self._metadata("attention.key_length_swa") or key
        window_value = self._metadata("attention.value_length_swa") or value
        return key == value and window_key == window_value and {key, window_key} <= _PACKED_HEADS

    def _metadata(self, key: str) -> str | None:
        buffer = ctypes.create_string_buffer(256)

        def value(name: bytes) -> str | None:
            n = lib.llama_model_meta_val_str(self._handle, name, buffer, len(buffer))
            return None if n < 0 else buffer.value.decode()

        return value(f"{value(b'general.architecture')}.{key}".encode())

    def _load(self) -> Any:
        return lib.llama_model_load_from_file(str(self._path).encode(), self._params)

    def weights_memory(self) -> int:
        """Bytes of the weights, each tensor counted once in its final form.

        llama.cpp logs these sizes only after it has allocated the buffers. So a real load is started, and
        cancelled before weights are read. Tensors that are repacked for this CPU (for example for AMX) are
        copied from the mapped file. Afterwards only pages of the other tensors are needed. Example: with AMX
        the default model needs 95 MiB repacked and 29 MiB of its 92 MiB file.

        Raises:
            ModelLoadError: The GPU lacks memory for its layers.
            UnsupportedLibraryError: A line with a size has an unknown form.
        """
        params = lib.llama_model_params.from_buffer_copy(self._params)
        params.no_alloc = False
        cancel = lib.llama_progress_callback(lambda _progress, _user_data: False)
        params.progress_callback = cancel
        with captured_log() as lines:
            lib.llama_model_load_from_file(str(self._path).encode(), params)
        if not any("model buffer size" in line for line in lines):
            # The kernel rejects allocations larger than all memory.
            if self._params.n_gpu_layers:
                raise ModelLoadError(last_error("no reason given"))
            return int(lib.llama_model_size(self._handle))
        return _host_bytes(lines)["model"]

    def context_memory(
        self, *, n_ctx: int, n_sequences: int, n_batch: int, n_outputs: int, kv: KVOptions
    ) -> ContextMemory:
        """Memory of a ``Context`` with these arguments.

        Raises:
            ModelLoadError: llama.cpp rejects the arguments.
            UnsupportedLibraryError: A size is missing in the log, or its line has an unknown form.
        """
        params = context_params(
            n_ctx=n_ctx, n_sequences=n_sequences, n_batch=n_batch, n_outputs=n_outputs, kv=kv
        )
        with captured_log() as lines:
            handle = lib.llama_init_from_model(self._handle, params)
        if not handle:
            raise ModelLoadError(last_error("no reason given"))
        n_ctx = lib.llama_n_ctx(handle)
        has_cache = bool(lib.llama_get_memory(handle))  # encoders have none
        lib.llama_free(handle)
        sizes = _host_bytes(lines)
        if missing := self._missing(sizes, has_cache=has_cache):
            raise UnsupportedLibraryError(f"its log has no size of {missing}")
        # The buffer of logits starts with one row per sequence. It grows when a decode requests more.
        output = sizes["output"] * max(n_outputs, n_sequences) // n_sequences
        return ContextMemory(n_ctx, sizes["KV"] + sizes["RS"] + sizes["state"], sizes["compute"] + output)

    def _missing(self, sizes: Mapping[str, int], *, has_cache: bool) -> str | None:
        """The buffer whose size is missing in the log of a context, or None."""
        needed = {"compute": "the compute buffer", "output": "the buffer of logits"}
        if has_cache and self.is_recurrent:
            needed["RS"] = "the recurrent states"
        elif has_cache and "state" not in sizes:
            needed["KV"] = "the KV cache"
        return next((name for kind, name in needed.items() if kind not in sizes), None)

    def close(self) -> None:
        if self._handle:
            lib.llama_model_free(self._handle)
            self._handle = None


def _host_bytes(lines: Iterable[str]) -> Counter[str]:
    """Logged sizes of buffers in host memory, by kind. A kind without an entry is not in the log.

    Raises:
        UnsupportedLibraryError: A line with a buffer's size has an unknown form.
    """
    gpus = _gpu_names()
    sizes: Counter[str] = Counter()
    on_host: list[bool] = []  # per layer of the current KV cache
    for line in lines:
        if match := _BUFFER.search(line):
            sizes[match["kind"]] += 0 if match["name"].startswith(gpus) else _bytes_in(match)
        elif match := _KV_LAYER.search(line):
            on_host.append(not match["name"].startswith(gpus))
        elif match := _KV_CACHE.search(line):
            sizes["KV"] += _bytes_in(match) * sum(on_host) // max(1, len(on_host))
            on_host.clear()
        elif "buffer size =" in line and not _EMPTY_KV_BUFFER.search(line):
            raise UnsupportedLibraryError(f"unknown form of a line in its log: {line.strip()}")
    return sizes


def _bytes_in(match: re.Match[str]) -> int:
    return round(float(match["mib"]) * _MIB)


def _gpu_names() -> tuple[str, ...]:
    """Names of devices with their own memory, such as ``CUDA0``. Names of their buffers begin with them."""
    device = ctypes.c_void_p
    count = native_function("ggml_backend_dev_count", ctypes.c_size_t)()
    get = native_function("ggml_backend_dev_get", device, ctypes.c_size_t)
    kind = native_function("ggml_backend_dev_type", ctypes.c_int, device)
    name = native_function("ggml_backend_dev_name", ctypes.c_char_p, device)
    devices = [get(i) for i in range(count)]
    return tuple(name(d).decode() for d in devices if kind(d) == 1)  # GGML_BACKEND_DEVICE_TYPE_GPU
