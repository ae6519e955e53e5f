"""Each variant of matmul_kernel.h equals f64 products of the weights that gguf-py reads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compilers import Toolchain
from numpy.typing import NDArray
from probe import INSTRUCTION_SETS, Findings, flags_with_needs

from tests.native.arm import CROSS_TOOLS, find_arm
from tests.native.native_library import EmulatedLibrary, Library, LoadedLibrary, compile_library
from tests.quantized_weights import FORMATS, Bytes, Format, put_halves

pytestmark = pytest.mark.timeout(600)  # seconds: compilers on a busy machine

SOURCE = Path(__file__).with_name("matmul_kernel.cpp")
_AVX2 = ("AVX2", "FMA", "F16C")
# Required instruction sets, and compiler flags in addition to those of _AVX2. Without AVX-512 BW, the second
# and the third variant are the same code in two encodings.
VARIANTS = {
    "AVX2": (_AVX2, ()),
    "AVX2 with AVX_VNNI": ((*_AVX2, "AVX_VNNI"), INSTRUCTION_SETS["AVX_VNNI"].flags),
    "AVX2 with AVX512_VNNI": ((*_AVX2, "AVX512_VNNI"), ("-mavx512vl", "-mavx512vnni")),
    "AVX512": ((*_AVX2, "AVX512_VNNI"), flags_with_needs(INSTRUCTION_SETS["AVX512_VNNI"])),
}
# Required flags of /proc/cpuinfo, and compiler flags.
ARM_VARIANTS = {"NEON": (("asimddp",), ("-march=armv8.2-a+dotprod",))}

COLUMNS = (1, 7, 8, 15, 16, 17, 31, 32, 33, 100)
ROWS = (*range(1, 14), 23, 24, 33, 63, 64, 70)

# Rounding of f32 sums, relative to the sum of absolute products. A product of 5 superblocks has up to 120
# roundings of 6e-8 each.
ROUNDING = 1e-5
# Rounding of normal activations to 8 bits, relative to the result (RMS).
QUANTIZATION = 0.01

PADDING = np.float32(12345)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Packed:
    format: Format
    columns: int
    k: int
    bytes: Bytes


class Kernel:
    """The functions of matmul_kernel.cpp, compiled as one variant."""

    def __init__(self, library: Library) -> None:
        self._call = library.call

    def pack(self, of: Format, blocks: Bytes) -> Packed:
        columns, k = len(blocks), blocks.shape[1] * of.block
        size = self._call("packed_size", of.name, columns, k)
        memory = np.full(size + 64, 0xAA, np.uint8)  # the kernel must set all bytes
        packed = memory[-memory.ctypes.data % 64 :][:size]
        self._call("pack", of.name, np.ascontiguousarray(blocks), columns, k, packed)
        return Packed(of, columns, k, packed)

    def quantize(self, x: Floats) -> Bytes:
        quantized = np.empty((len(x), self._call("quantized_size", 1, x.shape[1])), np.uint8)
        self._call("quantize_rows", np.ascontiguousarray(x), *x.shape, quantized)
        return quantized

    def values_of(self, quantized: Bytes, k: int) -> NDArray[np.float64]:
        values = np.empty((len(quantized), k))
        self._call("values_of", quantized, *values.shape, values)
        return values

    def multiply(
        self, packed: Packed, quantized: Bytes, *, order: Any = None, ends: tuple[int, ...] = ()
    ) -> Floats:
        """The products of rows ``order``, by default of all. Another call begins at each of ``ends``."""
        order = np.arange(len(quantized)) if order is None else order
        width = self._call("vector_columns")
        results = np.full((len(order), packed.columns + 16), PADDING)
        begin = 0
        for end in (*ends, packed.columns):
            vectors = begin // width, (end + width - 1) // width
            self._call(
                "multiply_rows", packed.format.name, packed.bytes, packed.columns, packed.k, *vectors,
                quantized, np.asarray(order, np.int32), len(order), results, results.shape[1],
            )  # fmt: skip
            begin = end
        assert (results[:, packed.columns :] == PADDING).all(), "written past the last column"
        return results[:, : packed.columns]


@pytest.fixture(scope="module")
def kernels(findings: Findings, toolchain: Toolchain, compiled_folder: Path) -> Iterator[dict[str, Kernel]]:
    """The variants that this CPU and compiler support, and those of emulated CPUs."""
    arm = find_arm(toolchain)

    def build(name: str) -> Library:
        if arm and name in ARM_VARIANTS:
            return arm.load(SOURCE, ARM_VARIANTS[name][1], compiled_folder)
        flags = [flag for needed in _AVX2 for flag in flags_with_needs(INSTRUCTION_SETS[needed])]
        flags += VARIANTS[name][1]
        return LoadedLibrary(compile_library(toolchain.cxx.command, SOURCE, flags, compiled_folder))

    names = [name for name, (sets, _) in VARIANTS.items() if set(sets) <= set(findings.usable)]
    names += [name for name, (features, _) in ARM_VARIANTS.items() if arm and not arm.lacks(features)]
    with ThreadPoolExecutor() as pool:
        libraries = list(pool.map(build, names))
    yield {name: Kernel(library) for name, library in zip(names, libraries, strict=True)}
    for library in libraries:
        if isinstance(library, EmulatedLibrary):
            library.close()


@pytest.fixture(params=(*VARIANTS, *ARM_VARIANTS))
def kernel(request: pytest.FixtureRequest, kernels: dict[str, Kernel]) -> Kernel:
    if request.param not in kernels:
        arm = request.param in ARM_VARIANTS
        pytest.skip(f"needs {CROSS_TOOLS}" if arm else "this CPU or compiler lacks the instruction sets")
    return kernels[request.param]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


each_format = pytest.mark.parametrize("of", FORMATS, ids=lambda of: of.name)


def superblocks(of: Format) -> tuple[int, ...]:
    return tuple(n * of.block for n in ((1, 2, 3, 5) if of.block == 256 else (1, 2, 7, 18)))


def check(kernel: Kernel, of: Format, blocks: Bytes, x: Floats) -> Floats:
    """Compare with the products of gguf-py's weights and the quantized activations."""
    quantized = kernel.quantize(x)
    found = kernel.multiply(kernel.pack(of, blocks), quantized)
    values = kernel.values_of(quantized, x.shape[1])
    allowed = ROUNDING * (np.abs(values) @ of.magnitudes(blocks).T)
    assert (np.abs(found - values @ of.values(blocks).T) <= allowed).all()
    return found


@each_format
def test_products_equal_f64_arithmetic(kernel: Kernel, rng: np.random.Generator, of: Format) -> None:
    for k in superblocks(of):
        blocks = of.random_bytes(rng, max(COLUMNS), k)
        x = rng.standard_normal((max(ROWS), k), np.float32)
        found = check(kernel, of, blocks, x)
        exact = x.astype(np.float64) @ of.values(blocks).T
        error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        assert 0 < error < QUANTIZATION


@each_format
def test_a_product_depends_on_its_row_and_column_alone(
    kernel: Kernel, rng: np.random.Generator, of: Format
) -> None:
    for k in superblocks(of):
        blocks = of.random_bytes(rng, max(COLUMNS), k)
        quantized = kernel.quantize(rng.standard_normal((max(ROWS), k), np.float32))
        whole = kernel.multiply(kernel.pack(of, blocks), quantized).view(np.uint32)
        for columns in COLUMNS:
            packed = kernel.pack(of, blocks[:columns])
            for rows in ROWS:
                order = rng.permutation(max(ROWS))[:rows]
                found = kernel.multiply(packed, quantized, order=order)
                np.testing.assert_array_equal(found.view(np.uint32), whole[order, :columns])


@each_format
def test_a_product_does_not_depend_on_its_place_in_a_batch(
    kernel: Kernel, rng: np.random.Generator, of: Format
) -> None:
    k = 2 * of.block
    quantized = kernel.quantize(rng.standard_normal((13, k), np.float32))
    packed = kernel.pack(of, of.random_bytes(rng, 33, k))
    alone = kernel.multiply(packed, quantized, order=[0])
    for rows in range(2, 14):
        for place in range(rows):
            order = [*range(1, place + 1), 0, *range(place + 1, rows)]
            together = kernel.multiply(packed, quantized, order=order)
            np.testing.assert_array_equal(together[place].view(np.uint32), alone[0].view(np.uint32))


@each_format
def test_columns_divided_among_calls_have_the_same_products(
    kernel: Kernel, rng: np.random.Generator, of: Format
) -> None:
    k = 3 * of.block
    quantized = kernel.quantize(rng.standard_normal((7, k), np.float32))
    packed = kernel.pack(of, of.random_bytes(rng, 100, k))
    whole = kernel.multiply(packed, quantized)
    for ends in ((16,), (32,), (96,), (16, 32), (48, 64, 80), (32, 80)):
        found = kernel.multiply(packed, quantized, ends=ends)
        np.testing.assert_array_equal(found.view(np.uint32), whole.view(np.uint32))


@each_format
def test_all_instruction_sets_give_the_same_bits(
    kernels: dict[str, Kernel], rng: np.random.Generator, of: Format
) -> None:
    if len(kernels) < 2:
        pytest.skip("this CPU or compiler runs one variant at most")
    for k in superblocks(of):
        blocks = of.random_bytes(rng, 41, k)
        x = rng.standard_normal((13, k), np.float32) * np.float32(10) ** rng.integers(-30, 30, (13, 1))
        products, values = [], []
        for kernel in kernels.values():
            quantized = kernel.quantize(x.astype(np.float32))
            products.append(kernel.multiply(kernel.pack(of, blocks), quantized).tobytes())
            values.append(kernel.values_of(quantized, k).tobytes())
        assert len(set(values)) == len(set(products)) == 1


# --- extremes


def extreme_weights(rng: np.random.Generator, of: Format, columns: int, k: int) -> dict[str, Bytes]:
    usual = of.random_bytes(rng, columns, k)
    halves = of.halves()

    def filled(values: Any) -> Bytes:
        """Quants, and the small scales of superblocks, have bytes ``values``."""
        blocks = usual.copy()
        blocks[:] = values
        blocks[..., halves] = usual[..., halves]
        return blocks

    def scaled(scale: float) -> Bytes:
        blocks = usual.copy()
        of.set_scales(blocks, scale)
        if of.minimum_at is not None:
            put_halves(blocks, of.minimum_at, -scale)
        return blocks

    extremes = {f"{byte:#04x}": filled(byte) for byte in (0x00, 0xFF, 0x7F, 0x80, 0x0F, 0xF0, 0x1F, 0xE0)}
    extremes["mixed"] = filled(rng.choice(np.array([0, 0xFF, 0x7F, 0x80], np.uint8), usual.shape))
    scales = {"zero": 0.0, "-0": -0.0, "1": 1.0, "-1": -1.0, "largest": 65504.0, "smallest": 6e-8}
    return extremes | {f"scale {name}": scaled(scale) for name, scale in scales.items()}


def extreme_activations(rng: np.random.Generator, k: int) -> Floats:
    """Rows with the largest quants. Their signs include the order that gives the largest 16-bit sums."""
    signs = np.stack(
        [
            np.ones(k),
            -np.ones(k),
            np.resize((1, -1), k),
            np.resize((1, 1, -1, -1), k),
            np.repeat((1, -1), k // 2),
            rng.choice((-1, 1), k),
        ]
    )
    return (signs * 3).astype(np.float32)


@each_format
def test_products_of_extreme_weights_equal_f64_arithmetic(
    kernel: Kernel, rng: np.random.Generator, of: Format
) -> None:
    k = 2 * of.block
    x = np.concatenate([extreme_activations(rng, k), rng.standard_normal((3, k), np.float32)])
    for blocks in extreme_weights(rng, of, 19, k).values():
        check(kernel, of, blocks, x)


@each_format
def test_all_instruction_sets_give_the_same_bits_for_extremes(
    kernels: dict[str, Kernel], rng: np.random.Generator, of: Format
) -> None:
    if len(kernels) < 2:
        pytest.skip("this CPU or compiler runs one variant at most")
    k = 2 * of.block
    x = extreme_activations(rng, k)
    for name, blocks in extreme_weights(rng, of, 19, k).items():
        products = {
            kernel.multiply(kernel.pack(of, blocks), kernel.quantize(x)).tobytes()
            for kernel in kernels.values()
        }
        assert len(products) == 1, name


@each_format
def test_products_of_extreme_activations_equal_f64_arithmetic(
    kernel: Kernel, rng: np.random.Generator, of: Format
) -> None:
    k = 2 * of.block
    x = rng.standard_normal((8, k), np.float32)
    x[0] = 0
    x[1] *= np.float32(1e-38)
    x[2] *= np.float32(1e-30)
    x[3] *= np.float32(1e30)
    x[4, 5] = 1e30  # all other values of the block are rounded to 0
    x[5, 5] = 1e-38
    x[6, ::2] = 0
    x[7, : k // 2] = 0
    found = check(kernel, of, of.random_bytes(rng, 19, k), x)
    assert not found[0].any()
    assert np.abs(found[1]).max() < 1e-33
    assert np.isfinite(found).all()


@each_format
def test_a_row_that_is_not_finite_does_not_change_other_rows(
    kernel: Kernel, rng: np.random.Generator, of: Format
) -> None:
    k = 2 * of.block
    x = rng.standard_normal((13, k), np.float32)
    packed = kernel.pack(of, of.random_bytes(rng, 19, k))
    clean = kernel.multiply(packed, kernel.quantize(x))
    for bad in (np.nan, np.inf, -np.inf):
        for at in ((5, 0), (5, k - 1), (5, slice(None))):
            broken = x.copy()
            broken[at] = bad
            found = kernel.multiply(packed, kernel.quantize(broken))
            others = np.arange(len(x)) != 5
            np.testing.assert_array_equal(found[others].view(np.uint32), clean[others].view(np.uint32))
