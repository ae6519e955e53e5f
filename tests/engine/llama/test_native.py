"""Struct layouts, exports and threads of the installed library."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import llama_cpp.llama_cpp as lib
import pytest

from app.engine.llama import UnsupportedLibraryError, native
from app.engine.llama.context import ThreadPool
from tests.conftest import MODEL, ROOT


def test_layouts_of_the_installed_library_match() -> None:
    native.check_layouts()


class _Smaller(ctypes.Structure):
    """llama_context_params without its last field, as in another version."""

    _fields_ = tuple(lib.llama_context_params._fields_[:-1])


class _Reordered(ctypes.Structure):
    """llama_context_params with n_ctx and n_batch swapped, as in another version."""

    _fields_ = tuple(
        ({"n_ctx": "n_batch", "n_batch": "n_ctx"}.get(name, name), kind)
        for name, kind in lib.llama_context_params._fields_
    )


class _Renamed(ctypes.Structure):
    _fields_ = tuple(
        (name.replace("kv_unified", "unified"), kind) for name, kind in lib.llama_context_params._fields_
    )


@pytest.mark.parametrize(
    ("declared", "difference"),
    [
        (_Smaller, "llama_context_params has a size of"),
        (_Reordered, "llama_context_params.n_ctx is at offset"),
        (_Renamed, "llama_cpp does not declare llama_context_params.kv_unified"),
    ],
)
def test_another_layout_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, declared: type[ctypes.Structure], difference: str
) -> None:
    monkeypatch.setattr(lib, "llama_context_params", declared)
    with pytest.raises(UnsupportedLibraryError) as error:
        native.check_layouts()
    assert difference in str(error.value)
    assert "Run `make rebuild`" in str(error.value)


_WITH_ANOTHER_LAYOUT = """
import ctypes, sys
import llama_cpp.llama_cpp as lib
from pathlib import Path

class Other(ctypes.Structure):
    _fields_ = [*lib.llama_batch._fields_, ("more", ctypes.c_void_p)]

lib.llama_batch = Other
from app.engine.llama import Model, ModelLoadError
try:
    Model(Path("any.gguf"))
except ModelLoadError as error:
    print(error)
"""


def test_layouts_are_checked_before_a_model_is_loaded() -> None:
    result = subprocess.run(
        [sys.executable, "-c", _WITH_ANOTHER_LAYOUT],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "llama_batch has a size of" in result.stdout


class _OlderLibrary:
    """The installed library without the newest function of native/."""

    def __getattr__(self, name: str) -> object:
        if name == "tokenstream_top_tokens":
            raise AttributeError(name)
        return getattr(_LIBRARY, name)


_LIBRARY = lib._lib


def test_a_library_without_our_functions_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lib, "_lib", _OlderLibrary())
    with pytest.raises(UnsupportedLibraryError, match=r"no function tokenstream_top_tokens.*`make rebuild`"):
        native.check_layouts()


def test_a_thread_pool_starts_and_ends_its_threads() -> None:
    def n_threads() -> int:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - only counted

    native.start_backend()
    before = n_threads()
    pool = ThreadPool(3)
    assert n_threads() == before + 2  # the calling thread is the third
    pool.close()
    assert n_threads() == before


# A separate process: resident memory here depends on earlier tests.
_FREEING = """
import os
import numpy as np
from app.engine.llama.native import start_backend

def resident_megabytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

start_backend()
before = resident_megabytes()
for _ in range(4):
    buffers = [np.ones(20_000_000, np.uint8) for _ in range(3)]
    assert resident_megabytes() - before > 55
    # A later allocation must not later the memory below it resident.
    later = [np.ones(100_000, np.uint8)]
    del buffers
print(resident_megabytes() - before)
"""


def test_memory_of_freed_buffers_returns_to_the_system() -> None:
    result = subprocess.run([sys.executable, "-c", _FREEING], capture_output=True, text=True, check=True)

    assert float(result.stdout) < 2


# States of less than 1 MiB, the limit of start_backend. Every other one is freed.
_EVICTING = """
import os
import sys
from pathlib import Path
from app.engine.llama import Batch, Context, KVOptions, Model

def resident_megabytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

model = Model(Path(sys.argv[1]))
context = Context(model, n_ctx=256, n_sequences=1, n_batch=64, n_outputs=1, n_threads=1, kv=KVOptions())
batch = Batch(64)
batch.add([*range(1000, 1032)], 0, 0, n_outputs=1)
context.decode(batch)
assert 200_000 < context.sequence_bytes(0) < 1 << 20
states = [context.save_sequence(0) for _ in range(80)]
before = resident_megabytes()
size = sum(state.nbytes for state in states[::2]) / 1e6
del states[::2]
assert context.restore_sequence(0, states[-1])
print((before - resident_megabytes()) / size)
"""


def test_memory_of_evicted_states_returns_to_the_system() -> None:
    command = [sys.executable, "-c", _EVICTING, str(MODEL)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)

    assert float(result.stdout) > 0.9
