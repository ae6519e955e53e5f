// Attention of up to four query rows over f16 keys and values: softmax(scale*Q*K + mask)*V.
//
// Depends only on compiler intrinsics: tests compile it for AVX2 and AVX-512 without ggml.
// flash_attention.cpp divides ggml's operation into calls of attend().
//
// Method: online softmax (Milakov and Gimelshein, arXiv:1805.02867) over blocks of 32 keys, in f32.
//   1. Scores of all rows with a block's keys. K is converted once for all rows.
//   2. Weights: exp(score - highest score so far). A new highest score rescales the sums.
//   3. Weighted sums of V: a tile of sums stays in registers while the block's values are read.
// Tile sizes fit the register file (16 vectors with AVX2, 32 with AVX-512). Other sizes spill to the stack.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace tokenstream {

using half = uint16_t; // IEEE binary16

constexpr int MAX_ROWS = 4;
constexpr int MAX_HEAD_SIZE = 256;
constexpr int BLOCK = 32; // keys

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define TOKENSTREAM_ATTENTION_KERNEL

constexpr int WIDTH = 16;      // floats per vector
constexpr int MAX_SCORES = 16; // of 32 registers, for scores
constexpr int MAX_SUMS = 24;   // of 32 registers, for a tile of sums
using Vec = __m512;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec all(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float * x) { return _mm512_loadu_ps(x); }
inline Vec load(const half * x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) x)); }
inline void store(float * to, Vec x) { _mm512_storeu_ps(to, x); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline float max_of(Vec x) { return _mm512_reduce_max_ps(x); }
inline float sum_of(Vec x) { return _mm512_reduce_add_ps(x); }
// The score, or minus infinity if the mask is: unwritten keys may hold NaN.
inline Vec masked(Vec score, Vec mask) {
    return _mm512_mask_mov_ps(score, _mm512_cmp_ps_mask(mask, all(-INFINITY), _CMP_EQ_OQ), mask);
}
inline Vec power_of_two(Vec n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline Vec round(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec where_above(Vec x, float least, Vec value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, all(least), _CMP_GT_OQ), value);
}

// The sums of 16 vectors as one vector: a transposition with additions.
inline Vec sums_of(const Vec * x) {
    Vec part[8], quarter[4];
    for (int i = 0; i < 8; ++i) {
        part[i] = add(_mm512_unpacklo_ps(x[2*i], x[2*i + 1]), _mm512_unpackhi_ps(x[2*i], x[2*i + 1]));
    }
    for (int i = 0; i < 4; ++i) {
        const __m512d a = _mm512_castps_pd(part[2*i]), b = _mm512_castps_pd(part[2*i + 1]);
        quarter[i] = add(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const Vec low = add(_mm512_shuffle_f32x4(quarter[0], quarter[1], 0x44),
                        _mm512_shuffle_f32x4(quarter[0], quarter[1], 0xEE));
    const Vec high = add(_mm512_shuffle_f32x4(quarter[2], quarter[3], 0x44),
                         _mm512_shuffle_f32x4(quarter[2], quarter[3], 0xEE));
    return add(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xDD));
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define TOKENSTREAM_ATTENTION_KERNEL

constexpr int WIDTH = 8;
constexpr int MAX_SCORES = 8; // of 16 registers
constexpr int MAX_SUMS = 12;
using Vec = __m256;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec all(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float * x) { return _mm256_loadu_ps(x); }
inline Vec load(const half * x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) x)); }
inline void store(float * to, Vec x) { _mm256_storeu_ps(to, x); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline float max_of(Vec x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
inline float sum_of(Vec x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
inline Vec masked(Vec score, Vec mask) {
    return _mm256_blendv_ps(score, mask, _mm256_cmp_ps(mask, all(-INFINITY), _CMP_EQ_OQ));
}
inline Vec power_of_two(Vec n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Vec round(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec where_above(Vec x, float least, Vec value) {
    return _mm256_and_ps(_mm256_cmp_ps(x, all(least), _CMP_GT_OQ), value);
}

inline Vec sums_of(const Vec * x) {
    Vec part[4], quarter[2];
    for (int i = 0; i < 4; ++i) {
        part[i] = add(_mm256_unpacklo_ps(x[2*i], x[2*i + 1]), _mm256_unpackhi_ps(x[2*i], x[2*i + 1]));
    }
    for (int i = 0; i < 2; ++i) {
        const __m256d a = _mm256_castps_pd(part[2*i]), b = _mm256_castps_pd(part[2*i + 1]);
        quarter[i] = add(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    }
    return add(_mm256_permute2f128_ps(quarter[0], quarter[1], 0x20),
               _mm256_permute2f128_ps(quarter[0], quarter[1], 0x31));
}

#endif

// Query rows with the same keys: heads of one group (GQA), at one or more positions.
struct Rows {
    const float * q[MAX_ROWS];
    const half * mask[MAX_ROWS]; // added to the scores, one value per key; null: every key is visible
    float * out[MAX_ROWS];       // head_size values
    float * partial[MAX_ROWS];   // null, or highest score and sum of weights; out is then not divided by the sum
};

// Keys and values of one head, `n` rows of each.
struct Keys {
    const char * k;
    const char * v;
    size_t k_stride; // bytes
    size_t v_stride;
    int64_t n;
};

#ifdef TOKENSTREAM_ATTENTION_KERNEL

// exp(x) for x <= 0, relative error below 3e-7; exactly 0 below -87, so that masked keys can be skipped.
inline Vec exp_of(Vec x) {
    const Vec bounded = max(x, all(-87.0f));
    const Vec n = round(mul(bounded, all(1.44269504f)));
    // ln 2 in two parts: the product of n with the first one is exact.
    const Vec r = fma(n, all(2.12194440e-4f), fma(n, all(-0.693359375f), bounded));
    Vec p = all(1.0f/5040);
    p = fma(p, r, all(1.0f/720));
    p = fma(p, r, all(1.0f/120));
    p = fma(p, r, all(1.0f/24));
    p = fma(p, r, all(1.0f/6));
    p = fma(p, r, all(0.5f));
    p = fma(p, r, all(1.0f));
    p = fma(p, r, all(1.0f));
    return where_above(x, -87.0f, mul(p, power_of_two(n)));
}

// Registers per row: the largest power of two, up to 8, so that `n_rows` rows fit into `n_registers`.
constexpr int per_row(int n_rows, int n_registers) {
    int n = 8;
    while (n*n_rows > n_registers) {
        n /= 2;
    }
    return n;
}

// Mask values of WIDTH keys from `at`; minus infinity past the last key.
inline Vec mask_of(const half * mask, int64_t at, int64_t n) {
    if (at + WIDTH <= n) {
        return mask ? load(mask + at) : zero();
    }
    float values[WIDTH];
    for (int i = 0; i < WIDTH; ++i) {
        values[i] = at + i >= n ? -INFINITY : mask ? _cvtsh_ss(mask[at + i]) : 0.0f;
    }
    return load(values);
}

// Unscaled scores of WIDTH keys from `at`. Past the last key, the last key is read again and masked.
template <int R>
inline void scores_of(const Rows & rows, const Keys & keys, int64_t at, int head_size, Vec * scores) {
    constexpr int KEYS = per_row(R, MAX_SCORES); // at once: independent sums hide the latency
    Vec product[R][WIDTH];
    for (int i = 0; i < WIDTH; i += KEYS) {
        const half * k[KEYS];
        Vec sum[R][KEYS];
        for (int key = 0; key < KEYS; ++key) {
            k[key] = (const half *) (keys.k + std::min(at + i + key, keys.n - 1)*keys.k_stride);
            for (int r = 0; r < R; ++r) {
                sum[r][key] = zero();
            }
        }
        for (int j = 0; j < head_size; j += WIDTH) {
            Vec part[KEYS];
            for (int key = 0; key < KEYS; ++key) {
                part[key] = load(k[key] + j);
            }
            for (int r = 0; r < R; ++r) {
                const Vec q = load(rows.q[r] + j);
                for (int key = 0; key < KEYS; ++key) {
                    sum[r][key] = fma(part[key], q, sum[r][key]);
                }
            }
        }
        for (int r = 0; r < R; ++r) {
            for (int key = 0; key < KEYS; ++key) {
                product[r][i + key] = sum[r][key];
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        scores[r] = sums_of(product[r]);
    }
}

// Visible keys of a block: values, and R weights per key.
struct Visible {
    const half * v[BLOCK];
    float weights[BLOCK][MAX_ROWS];
    int n;
};

// Add the weighted values to the sums from element `j`, in tiles of N vectors per row, then smaller tiles.
template <int R, int N>
inline void add_values(const Visible & visible, float (*sums)[MAX_HEAD_SIZE], int j, int head_size) {
    for (; j + N*WIDTH <= head_size; j += N*WIDTH) {
        Vec sum[R][N];
        for (int r = 0; r < R; ++r) {
            for (int i = 0; i < N; ++i) {
                sum[r][i] = load(sums[r] + j + i*WIDTH);
            }
        }
        for (int key = 0; key < visible.n; ++key) {
            const half * v = visible.v[key] + j;
            Vec weight[R];
            for (int r = 0; r < R; ++r) {
                weight[r] = all(visible.weights[key][r]);
            }
            for (int i = 0; i < N; ++i) {
                const Vec part = load(v + i*WIDTH);
                for (int r = 0; r < R; ++r) {
                    sum[r][i] = fma(part, weight[r], sum[r][i]);
                }
            }
        }
        for (int r = 0; r < R; ++r) {
            for (int i = 0; i < N; ++i) {
                store(sums[r] + j + i*WIDTH, sum[r][i]);
            }
        }
    }
    if constexpr (N > 1) {
        add_values<R, N/2>(visible, sums, j, head_size);
    }
}

template <int R>
void attend_rows(const Rows & rows, const Keys & keys, int head_size, float scale) {
    constexpr int VECTORS = BLOCK/WIDTH;
    float sums[R][MAX_HEAD_SIZE]; // weighted sums of values
    Vec total[R];                 // sums of weights, per lane
    float highest[R];             // score
    for (int r = 0; r < R; ++r) {
        std::fill_n(sums[r], head_size, 0.0f);
        total[r] = zero();
        highest[r] = -INFINITY;
    }
    for (int64_t at = 0; at < keys.n; at += BLOCK) {
        Vec scores[VECTORS][R];
        bool block_is_visible = false;
        for (int part = 0; part < VECTORS; ++part) {
            const int64_t begin = at + part*WIDTH;
            Vec mask[R];
            Vec highest_mask = all(-INFINITY);
            for (int r = 0; r < R; ++r) {
                mask[r] = mask_of(rows.mask[r], begin, keys.n);
                highest_mask = max(highest_mask, mask[r]);
            }
            if (max_of(highest_mask) == -INFINITY) {
                std::fill_n(scores[part], R, all(-INFINITY));
                continue;
            }
            block_is_visible = true;
            scores_of<R>(rows, keys, begin, head_size, scores[part]);
            for (int r = 0; r < R; ++r) {
                scores[part][r] = masked(fma(scores[part][r], all(scale), mask[r]), mask[r]);
            }
        }
        if (!block_is_visible) {
            continue;
        }
        float weights[R][BLOCK];
        for (int r = 0; r < R; ++r) {
            Vec best = scores[0][r];
            for (int part = 1; part < VECTORS; ++part) {
                best = max(best, scores[part][r]);
            }
            const float score = max_of(best);
            if (score > highest[r]) {
                const Vec shrink = all(expf(highest[r] - score));
                for (int j = 0; j < head_size; j += WIDTH) {
                    store(sums[r] + j, mul(load(sums[r] + j), shrink));
                }
                total[r] = mul(total[r], shrink);
                highest[r] = score;
            }
            for (int part = 0; part < VECTORS; ++part) {
                // No visible key: no highest score to subtract.
                const Vec w = highest[r] == -INFINITY ? zero() : exp_of(sub(scores[part][r], all(highest[r])));
                total[r] = add(total[r], w);
                store(weights[r] + part*WIDTH, w);
            }
        }
        // Values of keys without weight are not read: they may be NaN.
        Visible visible;
        visible.n = 0;
        for (int i = 0; i < (int) std::min<int64_t>(BLOCK, keys.n - at); ++i) {
            float any = 0.0f;
            for (int r = 0; r < R; ++r) {
                visible.weights[visible.n][r] = weights[r][i];
                any += weights[r][i];
            }
            visible.v[visible.n] = (const half *) (keys.v + (at + i)*keys.v_stride);
            visible.n += any > 0.0f;
        }
        add_values<R, per_row(R, MAX_SUMS)>(visible, sums, 0, head_size);
    }
    for (int r = 0; r < R; ++r) {
        const float sum = sum_of(total[r]);
        float share = sum == 0.0f ? 0.0f : 1.0f/sum;
        if (rows.partial[r]) {
            rows.partial[r][0] = highest[r];
            rows.partial[r][1] = sum;
            share = 1.0f;
        }
        for (int j = 0; j < head_size; j += WIDTH) {
            store(rows.out[r] + j, mul(load(sums[r] + j), all(share)));
        }
    }
}

// Compute `n_rows` rows, 1 to MAX_ROWS; head_size is a multiple of WIDTH, at most MAX_HEAD_SIZE.
inline void attend(const Rows & rows, int n_rows, const Keys & keys, int head_size, float scale) {
    switch (n_rows) {
        case 1:  return attend_rows<1>(rows, keys, head_size, scale);
        case 2:  return attend_rows<2>(rows, keys, head_size, scale);
        case 3:  return attend_rows<3>(rows, keys, head_size, scale);
        default: return attend_rows<4>(rows, keys, head_size, scale);
    }
}

#endif

} // namespace tokenstream
