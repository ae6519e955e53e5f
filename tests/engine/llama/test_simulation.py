"""Simulated sizes equal those in llama.cpp's log and the resident memory."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.engine.llama import (
    Batch,
    Context,
    KVOptions,
    Model,
    ModelLoadError,
    UnsupportedLibraryError,
    simulation,
)
from app.engine.llama.native import captured_log
from app.engine.llama.simulation import ContextMemory, SimulatedModel
from tests.conftest import MODEL
from tests.tiny_models import KINDS, TinyModel

MIB = 1 << 20


@pytest.fixture(params=("default", *KINDS))
def path(request: pytest.FixtureRequest, tiny_model: TinyModel) -> Path:
    return MODEL if request.param == "default" else tiny_model(request.param)


@pytest.fixture(scope="module")
def simulated() -> Iterator[SimulatedModel]:
    model = SimulatedModel(MODEL)
    yield model
    model.close()


def anonymous_memory() -> int:
    match = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def logged_mib(lines: list[str]) -> Counter[str]:
    """Sizes of real buffers by kind, on all devices."""
    sizes: Counter[str] = Counter()
    for line in lines:
        if match := re.search(r"(\w+) buffer size = +([\d.]+) MiB", line):
            sizes[match[1]] += float(match[2])  # type: ignore[assignment]
    return sizes


@pytest.mark.parametrize(
    ("n_ctx", "n_sequences", "kv"),
    [
        (2048, 1, KVOptions()),
        (8192, 8, KVOptions()),
        (2000, 3, KVOptions()),
        (8192, 8, KVOptions(flash_attention=True, type="q8_0")),
        (8192, 4, KVOptions(flash_attention=False)),
    ],
)
@pytest.mark.slow
def test_sizes_of_a_context_equal_the_simulated_ones(
    path: Path, n_ctx: int, n_sequences: int, kv: KVOptions
) -> None:
    def arguments(n_outputs: int) -> dict[str, int]:
        return {"n_ctx": n_ctx, "n_sequences": n_sequences, "n_batch": 520, "n_outputs": n_outputs}

    simulated, model = SimulatedModel(path), Model(path)
    with captured_log() as lines:
        context = Context(model, **arguments(n_sequences), n_threads=1, kv=kv)
    real = logged_mib(lines)
    expected = ContextMemory(
        n_ctx=context.n_ctx_sequence * n_sequences,
        kv=round(real["KV"] * MIB) + round(real["RS"] * MIB),
        buffers=round(real["compute"] * MIB) + round(real["output"] * MIB),
    )
    found = simulated.context_memory(**arguments(n_sequences), kv=kv)
    assert expected.kv > 0
    assert expected.buffers > MIB
    assert found.n_ctx == expected.n_ctx
    # Logged sizes are rounded to 0.01 MiB, and the cache of a sliding window has two parts.
    assert found.kv == pytest.approx(expected.kv, abs=0.02 * MIB)
    assert found.buffers == pytest.approx(expected.buffers, abs=0.02 * MIB)
    # The buffer of logits grows with the number of outputs.
    more = simulated.context_memory(**arguments(4 * n_sequences), kv=kv)
    assert more.buffers >= found.buffers + 3 * round(real["output"] * MIB)
    for part in (context, model, simulated):
        part.close()


def test_a_context_increases_resident_memory_by_the_simulated_size(
    simulated: SimulatedModel, model: Model
) -> None:
    """The KV cache is resident at once, the buffers after a full batch with all logits."""
    sizes = {"n_ctx": 16384, "n_sequences": 8, "n_batch": 520, "n_outputs": 136}
    expected = simulated.context_memory(**sizes, kv=KVOptions())
    before = anonymous_memory()
    context = Context(model, **sizes, n_threads=2)
    reserved = anonymous_memory() - before
    batch = Batch(520)
    for sequence in range(8):
        batch.add([1] * 65, 0, sequence, n_outputs=17)
    context.decode(batch)
    increase = anonymous_memory() - before
    context.close()
    assert expected.kv > 300 * MIB
    assert expected.kv <= reserved <= expected.kv + 16 * MIB
    assert expected.kv + expected.buffers / 2 < increase < expected.kv + expected.buffers + 16 * MIB


@pytest.mark.slow
def test_the_size_of_weights_equals_the_simulated_one(path: Path) -> None:
    """Weights are repacked in memory or mapped from the file. A mapping also covers unneeded parts."""
    simulated = SimulatedModel(path)
    weights = simulated.weights_memory()
    simulated.close()
    with captured_log() as lines:
        model = Model(path)
    model.close()
    buffers = [line for line in lines if "model buffer size" in line]
    mapped = logged_mib([line for line in buffers if "Mapped" in line])["model"] * MIB
    repacked = logged_mib([line for line in buffers if "Mapped" not in line])["model"] * MIB
    n_bytes = path.stat().st_size
    assert n_bytes - 6 * MIB < weights < 1.4 * n_bytes  # the file also contains a vocabulary
    rounding = 0.01 * MIB * len(buffers)  # logged sizes are rounded to 0.01 MiB
    assert repacked - rounding <= weights <= repacked + mapped + rounding


def test_a_model_increases_resident_memory_by_at_most_the_weights(simulated: SimulatedModel) -> None:
    before = anonymous_memory()
    model = Model(MODEL)
    increase = anonymous_memory() - before
    model.close()
    vocabulary = 512 * simulated.n_vocab
    assert increase < simulated.weights_memory() + vocabulary


def test_a_simulation_needs_no_memory(simulated: SimulatedModel) -> None:
    before = anonymous_memory()
    for _ in range(3):
        found = simulated.context_memory(
            n_ctx=1 << 20, n_sequences=8, n_batch=520, n_outputs=8, kv=KVOptions()
        )
        assert found.kv > 20_000 * MIB
    assert simulated.weights_memory() > 90 * MIB
    assert anonymous_memory() - before < 80 * MIB


def test_a_simulated_model_has_the_properties_of_the_model(path: Path, simulated: SimulatedModel) -> None:
    """The metadata of small models lack the size of the vocabulary."""
    model, found = Model(path), SimulatedModel(path)
    assert (found.n_ctx_train, found.n_vocab) == (model.n_ctx_train, model.vocab.n_tokens)
    assert found.is_recurrent == model.is_recurrent
    for part in (model, found):
        part.close()


def test_gpu_memory_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In these log lines of llama.cpp with CUDA, 3 of 4 layers and the output are on the GPU."""
    monkeypatch.setattr(simulation, "_gpu_names", lambda: ("CUDA0",))
    lines = [
        "load_tensors:   CPU_REPACK model buffer size =    60.00 MiB\n",
        "load_tensors:          CPU model buffer size =    40.00 MiB\n",
        "load_tensors:        CUDA0 model buffer size =   900.00 MiB\n",
        "llama_context:  CUDA_Host  output buffer size =     1.50 MiB\n",
        "llama_kv_cache: layer   0: dev = CPU\n",
        "llama_kv_cache: layer   1: dev = CUDA0\n",
        "llama_kv_cache: layer   2: dev = CUDA0\n",
        "llama_kv_cache: layer   3: dev = CUDA0\n",
        "llama_kv_cache:        CPU KV buffer size =     0.00 MiB\n",
        "llama_kv_cache:      CUDA0 KV buffer size =     0.00 MiB\n",
        "llama_kv_cache: size =  400.00 MiB (  2048 cells,   4 layers,  8/8 seqs), K (f16):  200.00 MiB, "
        "V (f16):  200.00 MiB\n",
        "llama_memory_recurrent:        CPU RS buffer size =     2.00 MiB\n",
        "llama_memory_recurrent:      CUDA0 RS buffer size =    50.00 MiB\n",
        "llama_memory_recurrent: size =   52.00 MiB (     8 cells,   4 layers,  8 seqs  0 rs_seq)\n",
        "dsv4_comp_state:        CPU DSV4 csa state buffer size =     3.00 MiB\n",
        "sched_reserve:      CUDA0 compute buffer size =   100.00 MiB\n",
        "sched_reserve:  CUDA_Host compute buffer size =     8.00 MiB\n",
    ]
    sizes = {kind: n_bytes / MIB for kind, n_bytes in simulation._host_bytes(lines).items()}
    assert sizes == {"model": 100, "output": 1.5, "KV": 100, "RS": 2, "state": 3, "compute": 8}


@pytest.mark.parametrize(
    "line",
    [
        "load_tensors:   CPU_REPACK model buffer size =    60.00 GiB\n",
        "load_tensors:   CPU_REPACK tensor buffer size =    60.00 MiB\n",
        "llama_kv_cache:        CPU KV buffer size =   40.00 MiB\n",
    ],
)
def test_a_size_of_unknown_form_is_an_error(line: str) -> None:
    with pytest.raises(UnsupportedLibraryError, match=f"line in its log: {line.split(':')[0]}.*make rebuild"):
        simulation._host_bytes([line])


@pytest.mark.parametrize(
    ("kind", "dropped", "missing"),
    [
        ("default", "llama_kv_cache: size", "the KV cache"),
        ("sliding-window", "llama_kv_cache: size", "the KV cache"),
        ("recurrent", "RS buffer size", "the recurrent states"),
        ("hybrid", "RS buffer size", "the recurrent states"),
        ("default", "compute buffer size", "the compute buffer"),
        ("default", "output buffer size", "the buffer of logits"),
    ],
)
def test_a_missing_size_is_an_error(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, kind: Any, dropped: str, missing: str
) -> None:
    host_bytes = simulation._host_bytes
    monkeypatch.setattr(
        simulation, "_host_bytes", lambda lines: host_bytes(x for x in lines if dropped not in x)
    )
    found = SimulatedModel(MODEL if kind == "default" else tiny_model(kind))
    with pytest.raises(UnsupportedLibraryError, match=f"its log has no size of {missing}"):
        found.context_memory(n_ctx=512, n_sequences=1, n_batch=512, n_outputs=1, kv=KVOptions())
    found.close()


def test_a_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelLoadError):
        SimulatedModel(other)


def test_a_context_that_llama_cpp_rejects_is_an_error(simulated: SimulatedModel) -> None:
    kv = KVOptions(flash_attention=False, type="q8_0")
    with pytest.raises(ModelLoadError, match="quantized V cache requires flash_attn"):
        simulated.context_memory(n_ctx=512, n_sequences=1, n_batch=512, n_outputs=1, kv=kv)


def test_log_lines_are_recorded_during_and_after_a_simulation(
    simulated: SimulatedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tokenstream.llama")
    kv = KVOptions(flash_attention=False, type="q8_0")
    with pytest.raises(ModelLoadError):
        simulated.context_memory(n_ctx=512, n_sequences=1, n_batch=512, n_outputs=1, kv=kv)
    assert "quantized V cache" in caplog.text
    with pytest.raises(ModelLoadError):
        Model(tmp_path / "nothing-here.gguf")
    assert "nothing-here" in caplog.text
