"""What a model and its contexts take of memory, found out without taking it.

llama.cpp goes through loading and reserving as ever and logs the sizes; so they are right for every
architecture and number format. Source: ``no_alloc`` in ``include/llama.h``, and ``common/fit.cpp``, which
fits models into GPUs in the same way.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

from app.engine.llama.context import KVOptions, context_params
from app.engine.llama.native import ModelLoadError, _on_log, last_complaint, native_function, start_backend

_MIB = 1 << 20

# "load_tensors:   AMX model buffer size =    95.34 MiB", and likewise for recurrent states (RS, in
# DeepSeek-V4 "state"), for logits (output) and for intermediate results (compute).
_BUFFER = re.compile(
    r": +(?P<name>\S+) +(?:\S+ )*?(?P<kind>model|RS|state|output|compute) buffer size = +(?P<mib>[\d.]+) MiB"
)
# A simulated KV cache has empty buffers; its tensors' size stands in a line of its own, after one line a
# layer on where that is kept.
_KV_CACHE = re.compile(r"llama_kv_cache: size = +(?P<mib>[\d.]+) MiB")
_KV_LAYER = re.compile(r"llama_kv_cache: layer +\d+: dev = (?P<name>\S+)")


@dataclass(frozen=True, slots=True)
class ContextMemory:
    """What one context takes of the machine's memory, in bytes.

    Attributes:
        n_ctx: Its cells, as llama.cpp rounds them up to 256 a sequence, or to 256 in all where shared.
        kv: Keys and values, and the states of recurrent layers; resident from the start.
        buffers: Intermediate results of the largest batch, and its logits.
    """

    n_ctx: int
    kv: int
    buffers: int


class SimulatedModel:
    """A model without weights: contexts of it take next to no memory and cannot compute.

    The states of recurrent layers are an exception: llama.cpp allocates them for as long as
    ``context_memory`` runs.
    """

    def __init__(self, path: Path, *, gpu_layers: int = 0, main_gpu: int = 0) -> None:
        """Read the metadata of ``path`` (for a split model its first part).

        Args:
            path: A GGUF file.
            gpu_layers: Layers to offload to a GPU; -1 is all. What lies there is not counted.
            main_gpu: The GPU that gets them.

        Raises:
            ModelLoadError: llama.cpp refuses the file.
        """
        start_backend()
        self._path = path
        self._params = lib.llama_model_default_params()
        self._params.n_gpu_layers = 2**31 - 1 if gpu_layers < 0 else gpu_layers
        self._params.main_gpu = main_gpu
        self._params.load_mode = lib.LLAMA_LOAD_MODE_NONE  # a mapping would count the whole file
        self._params.no_alloc = True
        # The vocabulary takes three quarters of the time of loading and has no part in any size but its
        # own. Without it the metadata must tell how many tokens there are, which most do.
        self._overrides = (lib.llama_model_kv_override * 2)()  # the second one ends the list
        self._overrides[0].tag = lib.LLAMA_KV_OVERRIDE_TYPE_STR
        self._overrides[0].key = b"tokenizer.ggml.model"
        self._overrides[0].value.val_str = b"none"
        self._params.kv_overrides = self._overrides
        self._handle = self._load()
        if not self._handle:
            self._params.kv_overrides = None
            self._handle = self._load()
        if not self._handle:
            raise ModelLoadError(last_complaint("llama.cpp gave no reason"))
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(self._handle)
        self.n_vocab: int = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._handle))
        # Recurrent states come one a sequence, whatever its length.
        self.is_recurrent: bool = lib.llama_model_is_recurrent(self._handle) or lib.llama_model_is_hybrid(
            self._handle
        )

    def _load(self) -> Any:
        return lib.llama_model_load_from_file(str(self._path).encode(), self._params)

    def weights_memory(self) -> int:
        """Bytes that the weights need: every tensor once, in the form that is computed with.

        Loading begins for real here, and is called off when the buffers are there and nothing is in them:
        only then does llama.cpp tell their sizes. What it repacks for the instructions of this CPU (AMX,
        for one) it copies from the mapped file; of the file's pages only the other tensors' are needed
        after that, the kernel may drop the rest. Of the default model are needed, on a CPU with AMX, 95
        MiB repacked and 29 MiB in the file; resident after loading are these 95 and all 92 of the file.

        Raises:
            ModelLoadError: The GPU has no room for its layers.
        """
        params = lib.llama_model_params.from_buffer_copy(self._params)
        params.no_alloc = False
        call_off = lib.llama_progress_callback(lambda _progress, _user_data: False)
        params.progress_callback = call_off
        with _captured_log() as lines:
            lib.llama_model_load_from_file(str(self._path).encode(), params)
        if not any("model buffer size" in line for line in lines):
            # The kernel refuses what is larger than all its memory.
            if self._params.n_gpu_layers:
                raise ModelLoadError(last_complaint("llama.cpp gave no reason"))
            return int(lib.llama_model_size(self._handle))
        return _host_bytes(lines)["model"]

    def context_memory(
        self, *, n_ctx: int, n_sequences: int, n_batch: int, n_outputs: int, kv: KVOptions
    ) -> ContextMemory:
        """What a ``Context`` with these arguments takes.

        Raises:
            ModelLoadError: llama.cpp would not make such a context.
        """
        params = context_params(
            n_ctx=n_ctx, n_sequences=n_sequences, n_batch=n_batch, n_outputs=n_outputs, kv=kv
        )
        with _captured_log() as lines:
            handle = lib.llama_init_from_model(self._handle, params)
        if not handle:
            raise ModelLoadError(last_complaint("llama.cpp gave no reason"))
        n_ctx = lib.llama_n_ctx(handle)
        lib.llama_free(handle)
        sizes = _host_bytes(lines)
        # The logits begin with a row a sequence, and grow when a decode first asks for more.
        output = sizes["output"] * max(n_outputs, n_sequences) // n_sequences
        return ContextMemory(n_ctx, sizes["KV"] + sizes["RS"] + sizes["state"], sizes["compute"] + output)

    def close(self) -> None:
        """Free the metadata."""
        if self._handle:
            lib.llama_model_free(self._handle)
            self._handle = None


@contextlib.contextmanager
def _captured_log() -> Iterator[list[str]]:
    """What llama.cpp logs meanwhile, of every level; it goes where it always goes, too."""
    lines: list[str] = []

    def keep(level: int, text: bytes, user_data: object) -> None:
        lines.append(text.decode("utf-8", "replace"))
        _on_log(level, text, user_data)

    callback = lib.llama_log_callback(keep)
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        lib.llama_log_set(_on_log, ctypes.c_void_p(0))


def _host_bytes(lines: Iterable[str]) -> Counter[str]:
    """The sizes that are logged, by kind of buffer, of what lies in the machine's own memory."""
    gpus = _gpu_names()
    sizes: Counter[str] = Counter()
    on_host: list[bool] = []  # the layers of the KV cache that the lines are about
    for line in lines:
        if match := _BUFFER.search(line):
            if not match["name"].startswith(gpus):
                sizes[match["kind"]] += _bytes_in(match)
        elif match := _KV_LAYER.search(line):
            on_host.append(not match["name"].startswith(gpus))
        elif match := _KV_CACHE.search(line):
            sizes["KV"] += _bytes_in(match) * sum(on_host) // max(1, len(on_host))
            on_host.clear()
    return sizes


def _bytes_in(match: re.Match[str]) -> int:
    return round(float(match["mib"]) * _MIB)


def _gpu_names() -> tuple[str, ...]:
    """The devices with memory of their own; their buffers' names begin with theirs (``CUDA0``)."""
    device = ctypes.c_void_p
    count = native_function("ggml_backend_dev_count", ctypes.c_size_t)()
    get = native_function("ggml_backend_dev_get", device, ctypes.c_size_t)
    kind = native_function("ggml_backend_dev_type", ctypes.c_int, device)
    name = native_function("ggml_backend_dev_name", ctypes.c_char_p, device)
    devices = [get(i) for i in range(count)]
    return tuple(name(d).decode() for d in devices if kind(d) == 1)  # GGML_BACKEND_DEVICE_TYPE_GPU
