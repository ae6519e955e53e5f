"""Each variant of attention_kernel.h is exact. Variants of the same width give the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compilers import Toolchain
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray
from probe import INSTRUCTION_SETS, Findings, flags_with_needs

from tests.native.arm import CROSS_TOOLS, find_arm
from tests.native.native_library import EmulatedLibrary, Library, LoadedLibrary, compile_library

pytestmark = pytest.mark.timeout(600)  # seconds: compilers on a busy machine

SOURCE = Path(__file__).with_name("attention_kernel.cpp")
# Required instruction sets, and keys per vector.
VARIANTS = {"AVX2": (("AVX2", "FMA", "F16C"), 8), "AVX512": (("AVX512",), 16)}
NEON_WIDTH = 8


class Kernel:
    def __init__(self, library: Library, width: int) -> None:
        self._library, self._width = library, width

    def __call__(
        self, q: Any, k: Any, v: Any, mask: Any, scale: float, cap: float = 0, *, packed: bool = False
    ) -> NDArray[np.float32]:
        out = np.empty_like(q)
        arrays = (q, k, v, 0 if mask is None else mask, out)
        sizes = (len(q), len(k), q.shape[1])
        options = np.array([scale, cap, packed], np.float32)
        assert self._library.call("attend", *arrays, *sizes, options) == self._width
        return out


@pytest.fixture(scope="module")
def kernels(findings: Findings, toolchain: Toolchain, compiled_folder: Path) -> Iterator[dict[str, Kernel]]:
    """The variants that this CPU and compiler support, and those of emulated CPUs."""
    found = {}
    for name, (sets, width) in VARIANTS.items():
        if set(sets) <= set(findings.usable):
            flags = [flag for needed in sets for flag in flags_with_needs(INSTRUCTION_SETS[needed])]
            library = compile_library(toolchain.cxx.command, SOURCE, flags, compiled_folder)
            found[name] = Kernel(LoadedLibrary(library), width)
    emulated: EmulatedLibrary | None = None
    if arm := find_arm(toolchain):
        emulated = arm.load(SOURCE, (), compiled_folder)
        found["NEON"] = Kernel(emulated, NEON_WIDTH)
    yield found
    if emulated:
        emulated.close()


def kernel_of(kernels: dict[str, Kernel], name: str) -> Kernel:
    if name not in kernels:
        pytest.skip(f"needs {CROSS_TOOLS if name == 'NEON' else ', '.join(VARIANTS[name][0])}")
    return kernels[name]


@pytest.fixture(params=(*VARIANTS, "NEON"))
def kernel(request: pytest.FixtureRequest, kernels: dict[str, Kernel]) -> Kernel:
    return kernel_of(kernels, request.param)


def random_inputs(rng: np.random.Generator, n_rows: int, n_keys: int, head_size: int, masked: bool) -> Any:
    q = rng.standard_normal((n_rows, head_size), np.float32)
    k, v = (rng.standard_normal((n_keys, head_size), np.float32).astype(np.float16) for _ in range(2))
    mask = None
    if masked:
        mask = rng.standard_normal((n_rows, n_keys), np.float32).astype(np.float16)
        mask[rng.random(mask.shape) < 0.6] = -np.inf
        mask[-1] = -np.inf  # a row without a visible key: its result is zero
    return q, k, v, mask, 2 / head_size**0.5


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
def test_a_variant_equals_f64_arithmetic(kernel: Kernel, head_size: int, n_rows: int, masked: bool) -> None:
    rng = np.random.default_rng(0)
    for n_keys in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 77, 500):
        inputs = random_inputs(rng, n_rows, n_keys, head_size, masked)
        np.testing.assert_allclose(kernel(*inputs), expected(*inputs), atol=3e-5, rtol=0)


def test_avx2_and_neon_give_the_same_bits(kernels: dict[str, Kernel]) -> None:
    """Up to 256 keys. More are merged with exp2f of the C library."""
    rng = np.random.default_rng(0)
    avx2, neon = (kernel_of(kernels, name) for name in ("AVX2", "NEON"))
    for n_rows, n_keys, head_size, masked in ((1, 256, 64, False), (3, 77, 80, True), (13, 200, 128, True)):
        q, k, v, mask, scale = random_inputs(rng, n_rows, n_keys, head_size, masked)
        for cap in (0, 3):
            assert avx2(q, k, v, mask, scale, cap).tobytes() == neon(q, k, v, mask, scale, cap).tobytes()
        if head_size % 32 == 0:
            k, v = (quantize(x.astype(np.float32), GGMLQuantizationType.Q8_0) for x in (k, v))
            found = [kernel(q, k, v, mask, scale, packed=True) for kernel in (avx2, neon)]
            assert np.isfinite(found[0]).all()
            assert found[0].tobytes() == found[1].tobytes()
