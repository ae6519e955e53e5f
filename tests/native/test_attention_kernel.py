"""Each variant of attention_kernel.h is exact. The AVX2 variant is also tested on CPUs with AVX-512."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compilers import Toolchain
from probe import INSTRUCTION_SETS, Findings, flags_with_needs

SOURCE = Path(__file__).with_name("attention_kernel.cpp")
VARIANTS = {"AVX2": (("AVX2", "FMA", "F16C"), 8), "AVX512": (("AVX512",), 16)}


@pytest.fixture(scope="module", params=VARIANTS)
def kernel(
    request: pytest.FixtureRequest,
    findings: Findings,
    toolchain: Toolchain,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    sets, width = VARIANTS[request.param]
    if missing := set(sets) - set(findings.usable):
        pytest.skip(f"this CPU or compiler lacks {', '.join(sorted(missing))}")
    flags = [flag for name in sets for flag in flags_with_needs(INSTRUCTION_SETS[name])]
    library = tmp_path_factory.mktemp("kernel") / f"{request.param}.so"
    command = [*toolchain.cxx.command, "-std=c++17", "-O3", "-DNDEBUG", "-w", "-shared", "-fPIC", *flags]
    subprocess.run([*command, str(SOURCE), "-o", str(library)], check=True)
    attend = ctypes.CDLL(str(library)).attend
    attend.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int] * 3 + [ctypes.c_float]

    def call(q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
        out = np.empty_like(q)
        pointers = [None if x is None else x.ctypes.data for x in (q, k, v, mask, out)]
        assert attend(*pointers, len(q), len(k), q.shape[1], scale) == width
        return out

    return call


def expected(q: Any, k: Any, v: Any, mask: Any, scale: float) -> Any:
    scores = scale * (q.astype(np.float64) @ k.astype(np.float64).T)
    scores = scores if mask is None else scores + mask.astype(np.float64)
    highest = scores.max(axis=1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(highest), highest, 0))
    total = weights.sum(axis=1, keepdims=True)
    return weights @ v.astype(np.float64) / np.where(total == 0, 1, total)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n_rows", [1, 3, 4, 6, 7, 13])
@pytest.mark.parametrize("head_size", [64, 80, 96, 128, 256])
def test_a_variant_equals_f64_arithmetic(kernel: Any, head_size: int, n_rows: int, masked: bool) -> None:
    rng = np.random.default_rng(0)
    for n_keys in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 77, 500):
        q = rng.standard_normal((n_rows, head_size), np.float32)
        k, v = (rng.standard_normal((n_keys, head_size), np.float32).astype(np.float16) for _ in range(2))
        mask = None
        if masked:
            mask = rng.standard_normal((n_rows, n_keys), np.float32).astype(np.float16)
            mask[rng.random(mask.shape) < 0.6] = -np.inf
            mask[-1] = -np.inf  # a row without a visible key: its result is zero
        inputs = (q, k, v, mask, 2 / head_size**0.5)
        np.testing.assert_allclose(kernel(*inputs), expected(*inputs), atol=3e-5, rtol=0)
