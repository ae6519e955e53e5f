"""Models have nearly the same perplexity and logits with our matrix kernels and with ggml's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.engine.llama import Batch, Context, Model, native
from bench.quantize import quantize
from tests.conftest import MODEL, ROOT, clean_environment
from tests.native.perplexity import score

FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
pytestmark = pytest.mark.skipif("avx2" not in FLAGS, reason="our matrix kernels need AVX2")

# A Q4_K_M file of the default model has Q4_K, Q5_0 and Q6_K: its widths are not all multiples of 256.
# test_matmul.py tests all formats.
REQUANTIZED = ("Q8_0", "Q4_K_M")
N_TOKENS = 2500


@pytest.fixture
def model_in(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Write the default model in a format."""
    path = tmp_path / "requantized.gguf"

    def write(name: str) -> Path:
        if name not in REQUANTIZED:
            return MODEL
        quantize(MODEL, path, name)
        return path

    yield write
    path.unlink(missing_ok=True)  # 100 MB


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["Q4_1", *REQUANTIZED])
def test_perplexity_is_at_most_half_a_percent_above_that_of_ggml(
    name: str, model_in: Callable[[str], Path], tmp_path: Path
) -> None:
    """It may be lower: ggml rounds activations of K-quants in blocks of 256.

    Losses of a token differ by 0.10 to 0.13 (standard deviation); means of 2,500 differ by 0.003 by chance.
    """
    model = model_in(name)
    ours, ggml = (score(model, matmul=matmul, n_tokens=N_TOKENS, folder=tmp_path) for matmul in (True, False))
    assert ours.calls > 0
    assert ggml.calls == 0
    assert len(ours.losses) >= N_TOKENS
    assert ours.perplexity < 1.005 * ggml.perplexity
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(ours.logits, ggml.logits, strict=True)]
    assert np.median(correlations) > 0.998
    assert min(correlations) > 0.98


_SERVING = """
import asyncio
from app.config.settings import load
from app.engine.llama import matmul_calls
from app.service.start import Start

async def calls():
    start = Start(load(env_file=None))
    await start.load(warm=["general"])
    await start.service.close()
    return matmul_calls()

print(asyncio.run(calls()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("matmul", ["auto", "ggml"])
def test_the_setting_matmul_selects_the_kernels(matmul: str, tmp_path: Path) -> None:
    """Startup prefills a context with all matrices of the model."""
    settings = {"MATMUL": matmul, "N_CTX": "2048", "FLASH_ATTENTION": "on"}
    environment = clean_environment(**settings, XDG_CACHE_HOME=str(tmp_path))
    calls = int(_output_of(_SERVING, environment=environment).stdout)
    assert calls > 200 if matmul == "auto" else calls == 0


_WITH_A_FAILING_TEST = """
import ctypes, json, logging, mmap, sys
from pathlib import Path
from app.engine.llama import Batch, Context, Model, matmul_calls, native_function, start_matmul
from gguf import GGMLQuantizationType
from tests.native.matmul_operation import is_supported

class Traits(ctypes.Structure):  # ggml_type_traits
    _fields_ = [
        ("type_name", ctypes.c_char_p), ("blck_size", ctypes.c_int64), ("interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t), ("is_quantized", ctypes.c_bool), ("to_float", ctypes.c_void_p),
    ]

@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
def wrong(weights, to, count):
    ctypes.memset(to, 0, 4 * count)

# start_matmul compares with ggml's dequantization, which is wrong during this comparison.
logging.basicConfig(format="%(message)s")
traits = native_function("ggml_get_type_traits", ctypes.POINTER(Traits), ctypes.c_int)(3).contents
assert traits.type_name == b"q4_1"
page = ctypes.addressof(traits) // mmap.PAGESIZE * mmap.PAGESIZE
size = ctypes.c_size_t(2 * mmap.PAGESIZE)
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), size, mmap.PROT_READ | mmap.PROT_WRITE) == 0
right, traits.to_float = traits.to_float, ctypes.cast(wrong, ctypes.c_void_p)
start_matmul()
traits.to_float = right

supported = [is_supported(GGMLQuantizationType[name]) for name in ("Q4_1", "Q4_0")]
model = Model(Path(sys.argv[1]))
context = Context(model, n_ctx=256, n_sequences=1, n_batch=64, n_threads=2)
batch = Batch(64)
batch.add([1, 2, 3], 0, 0, n_outputs=1)
context.decode(batch)
print(json.dumps([supported, matmul_calls(), context.logits[0].tolist()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the fault needs mprotect")
def test_a_format_that_fails_its_test_is_left_to_ggml(model: Model) -> None:
    result = _output_of(_WITH_A_FAILING_TEST, str(MODEL))
    assert re.fullmatch(r"The matrix kernels for q4_1 fail.*\n", result.stderr)
    supported, calls, logits = json.loads(result.stdout)
    assert supported == [False, True]
    assert calls == 1  # of the output matrix: it alone is Q8_0
    context = Context(model, n_ctx=256, n_sequences=1, n_batch=64, n_threads=2)
    batch = Batch(64)
    batch.add([1, 2, 3], 0, 0, n_outputs=1)
    context.decode(batch)
    assert np.corrcoef(logits, context.logits[0])[0, 1] > 0.99
    context.close()


def _output_of(
    program: str, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip


def test_a_build_without_kernels_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On CPUs without AVX2, tokenstream_matmul_start returns null."""

    def none(name: str, *types: Any) -> Callable[[], None]:
        assert name == "tokenstream_matmul_start"
        return lambda: None

    monkeypatch.setattr(native, "native_function", none)
    caplog.set_level("INFO", "tokenstream.llama")
    native._test_matmul()
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "no matrix kernels for this CPU" in caplog.text
