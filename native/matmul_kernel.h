// Products of quantized rows with panels of quantized weights (matmul_formats.h).
//
// Depends on the compiler's intrinsics alone, so that tests compile it for each instruction set apart from ggml.
// matmul.cpp divides ggml's operations into calls of multiply().
//
// Activations are quantized to 8 bits with an f32 scale for each 32 values, as ggml's Q8_0 and Q8_1 are. Products
// of a block are summed as 32-bit integers, blocks as f32 in the order of k. A result therefore depends on its
// row and column alone: not on the other rows, the tile, the thread or the instruction set.
#pragma once

#include "matmul_formats.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define TOKENSTREAM_MATMUL_KERNEL
#include "matmul_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define TOKENSTREAM_MATMUL_KERNEL
#include "matmul_avx2.h"
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define TOKENSTREAM_MATMUL_KERNEL
#include "matmul_neon.h"
#endif

#include <algorithm>
#include <cmath>
#include <vector>

namespace tokenstream {

// 32 values of a row.
struct Activations {
    float scale;
    float sum;          // of the values
    int32_t negated[3]; // minus the sum of the quants: all 32, the first 16, the last 16
    int8_t quants[BLOCK_SIZE];
};

#ifdef TOKENSTREAM_MATMUL_KERNEL

inline void quantize(const float * x, int64_t n_blocks, Activations * to) {
    for (int64_t b = 0; b < n_blocks; ++b, x += BLOCK_SIZE, ++to) {
        const float top = highest(x);
        const float factor = top > 1e-30f ? 127.0f/top : 0.0f; // 127/top overflows for smaller values
        to->negated[1] = -round_half(x, factor, to->quants);
        to->negated[2] = -round_half(x + 16, factor, to->quants + 16);
        to->negated[0] = to->negated[1] + to->negated[2];
        to->scale = top/127.0f;
        to->sum = to->scale*-to->negated[0];
    }
}

// A Dot sums products of a row's quants with unsigned weights, four neighbouring bytes to a lane. `count`: calls
// of add() before this one. It is known at compile time. IS_SIGNED: it needs the weights minus 128.

// Unpack vectors V and V + 4 of a block.
template <class F, int V> inline void unpack_weights(const uint8_t * block, Ints & low, Ints & high) {
    if constexpr (F::BITS == 8) {
        low = load_ints(block + 64*V), high = load_ints(block + 64*(V + 4));
    } else {
        const Ints both = load_ints(block + 64*V);
        low = bits_and(both, all_bytes(15)), high = bits_and(shift_right<4>(both), all_bytes(15));
    }
    if constexpr (F::BITS == 5) {
        const Ints bits = load_ints(block + 256);
        low = bits_or(low, bits_and(shift_left<4 - V>(bits), all_bytes(16)));
        high = bits_or(high, bits_and(shift_right<V>(bits), all_bytes(16)));
    } else if constexpr (F::BITS == 6) {
        const Ints first = load_ints(block + 256), second = load_ints(block + 320);
        constexpr int LEFT = V < 2 ? 4 - 2*V : 0, RIGHT = V < 2 ? 0 : 2*V - 4;
        low = bits_or(low, bits_and(shift_right<RIGHT>(shift_left<LEFT>(first)), all_bytes(48)));
        high = bits_or(high, bits_and(shift_right<RIGHT>(shift_left<LEFT>(second)), all_bytes(48)));
    }
    if constexpr (F::CODEBOOK) {
        low = look_up(low), high = look_up(high);
    }
    if constexpr (IS_SIGNED<F>) {
        low = bits_xor(low, all_bytes(128)), high = bits_xor(high, all_bytes(128));
    }
}

template <class F, int V> inline void unpack_pair(const uint8_t * block, uint8_t * to) {
    Ints low, high;
    unpack_weights<F, V>(block, low, high);
    store_ints(to + V*4*LANES, low);
    store_ints(to + (V + 4)*4*LANES, high);
}

// A matrix of panels: `columns` results of rows with 32*`blocks` values.
struct Matrix {
    const uint8_t * panels;
    int64_t columns, blocks;
};

constexpr size_t UNPACKED_BYTES = 8*4*LANES; // of a block of one vector of columns

// Unpack all blocks of a vector of columns, for many tiles.
template <class F> void unpack_vector(const uint8_t * quants, int64_t n_blocks, uint8_t * to) {
    for (int64_t b = 0; b < n_blocks; ++b, quants += F::QUANT_BYTES, to += UNPACKED_BYTES) {
        unpack_pair<F, 0>(quants, to);
        unpack_pair<F, 1>(quants, to);
        unpack_pair<F, 2>(quants, to);
        unpack_pair<F, 3>(quants, to);
    }
}

// Weights to fetch into the L2 cache while a tile computes: `step` bytes with each block. The processor prefetches too
// little by itself, since a tile reads several streams at a time.
struct Prefetch {
    const uint8_t * at;
    size_t step;

    inline void next() {
        for (const uint8_t * end = at + step; at < end; at += 64) {
            __builtin_prefetch(at, 0, 2);
        }
    }
};

// A tile: R rows times P vectors of columns.
// `unpacked`: P vectors of columns from unpack_vector(); null: the tile unpacks the panels.
template <class F, int R, int P, bool UNPACKED> struct Tile {
    static constexpr int PARTS = 1 + F::HALVES;
    static constexpr size_t STEP = UNPACKED ? UNPACKED_BYTES : F::QUANT_BYTES;
    const uint8_t * quants[P], * scales[P];
    const Activations * rows[R];
    Prefetch prefetch;
    Floats sums[R][P];

    Tile(const Matrix & matrix, int64_t vector, const uint8_t * unpacked, const Activations * const * from, Prefetch prefetch)
        : prefetch(prefetch) {
        for (int p = 0; p < P; ++p) {
            const int64_t column = (vector + p)*LANES, at = column%COLUMNS;
            const uint8_t * panel = matrix.panels + column/COLUMNS*F::panel_size(matrix.blocks);
            quants[p] = UNPACKED ? unpacked + p*matrix.blocks*UNPACKED_BYTES : panel + 4*at;
            scales[p] = panel + F::quants_size(matrix.blocks) + (F::BLOCKS > 1 ? 0 : 2*at);
        }
        for (int r = 0; r < R; ++r) {
            rows[r] = from[r];
            for (int p = 0; p < P; ++p) {
                sums[r][p] = all_floats(0.0f);
            }
        }
    }

    template <int V> inline void add_products(Dot<F> (& dots)[R][P][PARTS]) {
        Ints low[P], high[P];
        for (int p = 0; p < P; ++p) {
            if constexpr (UNPACKED) {
                low[p] = load_ints(quants[p] + V*4*LANES), high[p] = load_ints(quants[p] + (V + 4)*4*LANES);
            } else {
                unpack_weights<F, V>(quants[p], low[p], high[p]);
            }
        }
        for (int r = 0; r < R; ++r) {
            const Ints first = load_quants<V>(rows[r]->quants), second = load_quants<V>(rows[r]->quants + 16);
            for (int p = 0; p < P; ++p) {
                dots[r][p][0].template add<V>(F::HALVES ? V : 2*V, low[p], first);
                dots[r][p][PARTS - 1].template add<V>(F::HALVES ? V : 2*V + 1, high[p], second);
            }
        }
    }

    // scale and minimum: of the blocks, P vectors each; scale has PARTS.
    inline void add_block(const Floats (& scale)[P][PARTS], const Floats (& minimum)[P]) {
        prefetch.next();
        Dot<F> dots[R][P][PARTS];
        for (int r = 0; r < R; ++r) {
            for (int part = 0; part < PARTS; ++part) {
                constexpr int SHIFT = F::OFFSET == 8 ? 3 : F::OFFSET == 16 ? 4 : F::OFFSET == 32 ? 5 : 7;
                const Ints start = F::OFFSET == 0 || IS_SIGNED<F>
                    ? all_ints(0)
                    : shift_left<SHIFT>(all_ints(rows[r]->negated[F::HALVES ? 1 + part : 0]));
                for (int p = 0; p < P; ++p) {
                    dots[r][p][part].sum = start;
                }
            }
        }
        add_products<0>(dots);
        add_products<1>(dots);
        add_products<2>(dots);
        add_products<3>(dots);
        for (int r = 0; r < R; ++r) {
            for (int p = 0; p < P; ++p) {
                Floats sum = mul(to_floats(dots[r][p][0].sum), scale[p][0]);
                if constexpr (F::HALVES) {
                    sum = fma(to_floats(dots[r][p][1].sum), scale[p][1], sum);
                }
                sums[r][p] = fma(sum, all_floats(rows[r]->scale), sums[r][p]);
                if constexpr (F::MINIMUM) {
                    const Floats total = all_floats(rows[r]->sum);
                    sums[r][p] = F::BLOCKS > 1 ? fnma(minimum[p], total, sums[r][p])
                                               : fma(minimum[p], total, sums[r][p]);
                }
            }
            ++rows[r];
        }
        for (int p = 0; p < P; ++p) {
            quants[p] += STEP;
        }
    }

    inline void add_superblock(int64_t vector) {
        Floats scale[P][PARTS], minimum[P], super_scale[P], super_minimum[P];
        for (int p = 0; p < P; ++p) {
            const int64_t at = (vector + p)*LANES%COLUMNS;
            if constexpr (F::BLOCKS > 1) {
                super_scale[p] = load_halves(scales[p] + 2*at);
                if constexpr (F::MINIMUM) {
                    super_minimum[p] = load_halves(scales[p] + 2*COLUMNS + 2*at);
                }
                scales[p] += F::HEAD_BYTES;
            }
        }
        for (int b = 0; b < F::BLOCKS; ++b) {
            for (int p = 0; p < P; ++p) {
                const int64_t at = (vector + p)*LANES%COLUMNS;
                if constexpr (F::BLOCKS == 1) {
                    scale[p][0] = load_halves(scales[p]);
                    if constexpr (F::MINIMUM) {
                        minimum[p] = load_halves(scales[p] + 2*COLUMNS);
                    }
                } else if constexpr (F::MINIMUM) {
                    scale[p][0] = mul(super_scale[p], load_unsigned(scales[p] + at));
                    minimum[p] = mul(super_minimum[p], load_unsigned(scales[p] + COLUMNS + at));
                } else {
                    for (int part = 0; part < PARTS; ++part) {
                        scale[p][part] = mul(super_scale[p], load_signed(scales[p] + part*COLUMNS + at));
                    }
                }
                scales[p] += F::SCALE_BYTES;
            }
            add_block(scale, minimum);
        }
    }
};

template <class F, int R, int P, bool UNPACKED>
void multiply_tile(const Matrix & matrix, int64_t vector, const uint8_t * unpacked, const Activations * const * rows, float * const * results, Prefetch prefetch) {
    Tile<F, R, P, UNPACKED> tile(matrix, vector, unpacked, rows, prefetch);
    for (int64_t s = 0; s < matrix.blocks/F::BLOCKS; ++s) {
        tile.add_superblock(vector);
    }
    for (int r = 0; r < R; ++r) {
        for (int p = 0; p < P; ++p) {
            const int64_t column = (vector + p)*LANES, n = matrix.columns - column;
            if (n >= LANES) {
                store_floats(results[r] + column, tile.sums[r][p]);
            } else {
                float last[LANES];
                store_floats(last, tile.sums[r][p]);
                std::copy_n(last, n, results[r] + column);
            }
        }
    }
}

template <class F, int P, bool UNPACKED, int MOST>
void multiply_rows(const Matrix & matrix, int64_t vector, const uint8_t * unpacked, const Activations * const * rows, float * const * results, int n_rows) {
    // The last tiles share the prefetch of the weights behind these vectors. Wide tiles of 8-bit weights are faster
    // without it.
    constexpr size_t BYTES = (F::QUANT_BYTES + F::SCALE_BYTES + F::HEAD_BYTES/F::BLOCKS)*P*LANES/COLUMNS; // of a block
    const int64_t behind = vector*LANES + std::max(COLUMNS, P*LANES);
    const uint8_t * const next = matrix.panels + behind*F::panel_size(matrix.blocks)/COLUMNS;
    int tiles = (n_rows + MOST - 1)/MOST;
    const int sharing = F::BITS == 8 && P > TILE_VECTORS ? 0 : std::min(tiles, 4);
    // Tiles of similar size: 8 rows are 4 and 4, not 6 and 2.
    for (; tiles > 0; --tiles) {
        const int n = (n_rows + tiles - 1)/tiles;
        const int part = sharing - tiles;
        const Prefetch prefetch = part < 0 ? Prefetch{nullptr, 0}
            : Prefetch{next + part*matrix.blocks*BYTES/sharing, BYTES/sharing};
        switch (n) {
            case 1:  multiply_tile<F, 1, P, UNPACKED>(matrix, vector, unpacked, rows, results, prefetch); break;
            case 2:  multiply_tile<F, 2, P, UNPACKED>(matrix, vector, unpacked, rows, results, prefetch); break;
            case 3:  multiply_tile<F, std::min(3, MOST), P, UNPACKED>(matrix, vector, unpacked, rows, results, prefetch); break;
            case 4:  multiply_tile<F, std::min(4, MOST), P, UNPACKED>(matrix, vector, unpacked, rows, results, prefetch); break;
            case 5:  multiply_tile<F, std::min(5, MOST), P, UNPACKED>(matrix, vector, unpacked, rows, results, prefetch); break;
            default: multiply_tile<F, MOST, P, UNPACKED>(matrix, vector, unpacked, rows, results, prefetch); break;
        }
        rows += n, results += n, n_rows -= n;
    }
}

constexpr int FEW_ROWS = 2; // tiles of so few rows are twice as wide

// With this many rows, unpacking once for all tiles is faster than in each.
template <class F> constexpr int UNPACK_ROWS = F::BITS == 8 ? 1 << 30 : F::BITS == 4 ? 64 : 24;

// Multiply rows with P vectors of columns.
template <class F, int P>
void multiply_vectors(const Matrix & matrix, int64_t vector, const Activations * const * rows, float * const * results, int n_rows) {
    constexpr int MOST = F::HALVES ? 4 : TILE_ROWS;
    if (n_rows < UNPACK_ROWS<F>) {
        multiply_rows<F, P, false, MOST>(matrix, vector, nullptr, rows, results, n_rows);
        return;
    }
    thread_local std::vector<uint8_t> unpacked;
    const size_t size = matrix.blocks*UNPACKED_BYTES;
    if (unpacked.size() < P*size + 64) {
        unpacked.resize(P*size + 64);
    }
    uint8_t * const aligned = (uint8_t *) (((uintptr_t) unpacked.data() + 63)/64*64);
    for (int p = 0; p < P; ++p) {
        const int64_t column = (vector + p)*LANES;
        const uint8_t * panel = matrix.panels + column/COLUMNS*F::panel_size(matrix.blocks);
        unpack_vector<F>(panel + 4*(column%COLUMNS), matrix.blocks, aligned + p*size);
    }
    multiply_rows<F, P, true, MOST>(matrix, vector, aligned, rows, results, n_rows);
}

inline int64_t n_vectors(const Matrix & matrix) { return (matrix.columns + LANES - 1)/LANES; }

// Multiply rows with vectors `begin` to `end` of columns. results[row][column]
template <class F>
void multiply(const Matrix & matrix, int64_t begin, int64_t end, const Activations * const * rows, float * const * results, int n_rows) {
    for (; n_rows <= FEW_ROWS && begin + 2*TILE_VECTORS <= end; begin += 2*TILE_VECTORS) {
        multiply_rows<F, 2*TILE_VECTORS, false, FEW_ROWS>(matrix, begin, nullptr, rows, results, n_rows);
    }
    for (; begin + TILE_VECTORS <= end; begin += TILE_VECTORS) {
        multiply_vectors<F, TILE_VECTORS>(matrix, begin, rows, results, n_rows);
    }
    for (; begin < end; ++begin) {
        multiply_vectors<F, 1>(matrix, begin, rows, results, n_rows);
    }
}

#endif

} // namespace tokenstream
