// Flash attention for f16 keys and values, with the running sums in registers.
//
// ggml takes fewer than 64 queries one head at a time and keeps the weighted sum of V as f16 in memory, so
// that every key waits for the store of the one before: some 65 cycles a key and head of 64 values, where
// this takes about 10. The heads of a group (GQA), and queries beside each other, share K and V as they are
// converted. A block of keys that nobody of them may see is skipped as a whole.
//
// The method is Milakov and Gimelshein's online softmax (arXiv:1805.02867), as in ggml-cpu/ops.cpp, in f32
// throughout. What it does not cover goes to ggml's own: other types, ALiBi, soft caps, sinks, other CPUs.
// llama_cpp.cmake puts this into ggml's library for the CPU and makes ggml-cpu.c call it.

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"
#include "ops.h"
#include "vec.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

#if defined(__AVX512F__) && defined(__AVX512DQ__)

constexpr int W = 16; // floats of a vector, and keys of a block
constexpr int REGISTERS = 16; // of 32, for sums
using Vec = __m512;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec all(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float * x) { return _mm512_loadu_ps(x); }
inline Vec load(const ggml_fp16_t * x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) x)); }
inline void store(float * to, Vec x) { _mm512_storeu_ps(to, x); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// The score where the mask lets it be seen: keys that nobody wrote yet may hold anything.
inline Vec seen(Vec score, Vec mask) {
    return _mm512_mask_mov_ps(score, _mm512_cmp_ps_mask(mask, all(-INFINITY), _CMP_EQ_OQ), mask);
}
inline float max_of(Vec x) { return _mm512_reduce_max_ps(x); }
inline float sum_of(Vec x) { return _mm512_reduce_add_ps(x); }

// The sums of 16 vectors as one: a transposition of which every step adds.
inline Vec sums_of(const Vec * x) {
    Vec half[8], quarter[4];
    for (int i = 0; i < 8; ++i) {
        half[i] = add(_mm512_unpacklo_ps(x[2*i], x[2*i + 1]), _mm512_unpackhi_ps(x[2*i], x[2*i + 1]));
    }
    for (int i = 0; i < 4; ++i) {
        const __m512d a = _mm512_castps_pd(half[2*i]), b = _mm512_castps_pd(half[2*i + 1]);
        quarter[i] = add(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const Vec low = add(_mm512_shuffle_f32x4(quarter[0], quarter[1], 0x44),
                        _mm512_shuffle_f32x4(quarter[0], quarter[1], 0xEE));
    const Vec high = add(_mm512_shuffle_f32x4(quarter[2], quarter[3], 0x44),
                         _mm512_shuffle_f32x4(quarter[2], quarter[3], 0xEE));
    return add(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xDD));
}
#define TOKENSTREAM_FLASH_ATTENTION

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

constexpr int W = 8;
constexpr int REGISTERS = 8; // of 16
using Vec = __m256;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec all(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float * x) { return _mm256_loadu_ps(x); }
inline Vec load(const ggml_fp16_t * x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) x)); }
inline void store(float * to, Vec x) { _mm256_storeu_ps(to, x); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec seen(Vec score, Vec mask) {
    return _mm256_blendv_ps(score, mask, _mm256_cmp_ps(mask, all(-INFINITY), _CMP_EQ_OQ));
}
inline float max_of(Vec x) {
    float lanes[8];
    store(lanes, x);
    return *std::max_element(lanes, lanes + 8);
}
inline float sum_of(Vec x) {
    float lanes[8];
    store(lanes, x);
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

inline Vec sums_of(const Vec * x) {
    Vec half[4], quarter[2];
    for (int i = 0; i < 4; ++i) {
        half[i] = add(_mm256_unpacklo_ps(x[2*i], x[2*i + 1]), _mm256_unpackhi_ps(x[2*i], x[2*i + 1]));
    }
    for (int i = 0; i < 2; ++i) {
        const __m256d a = _mm256_castps_pd(half[2*i]), b = _mm256_castps_pd(half[2*i + 1]);
        quarter[i] = add(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    }
    return add(_mm256_permute2f128_ps(quarter[0], quarter[1], 0x20),
               _mm256_permute2f128_ps(quarter[0], quarter[1], 0x31));
}
#define TOKENSTREAM_FLASH_ATTENTION

#endif

#ifdef TOKENSTREAM_FLASH_ATTENTION

// Queries that attend to the same keys: one head's, and those of its group, at one or more positions.
struct Rows {
    const float * q[REGISTERS];
    const ggml_fp16_t * mask[REGISTERS]; // null: every key is seen
    float * out[REGISTERS];
};

struct Keys {
    const char * k;
    const char * v;
    size_t k_stride; // bytes from a key to the next
    size_t v_stride;
    int64_t n;
};

// What is added to the scores of the block of keys at `at`; minus infinity behind the last.
inline Vec mask_of(const ggml_fp16_t * mask, int64_t at, int64_t n) {
    if (mask && at + W <= n) {
        return load(mask + at);
    }
    float values[W];
    for (int i = 0; i < W; ++i) {
        values[i] = at + i >= n ? -INFINITY : mask ? GGML_CPU_FP16_TO_FP32(mask[at + i]) : 0.0f;
    }
    return load(values);
}

// D: values of a head. R: rows.
template <int D, int R>
void attend(const Rows & rows, const Keys & keys, float scale) {
    constexpr int N = D/W; // vectors of a head
    Vec sum[R][N]; // of the values, weighted
    Vec weight[R]; // sum of the weights, lane by lane
    float highest[R];
    for (int r = 0; r < R; ++r) {
        for (int j = 0; j < N; ++j) {
            sum[r][j] = zero();
        }
        weight[r] = zero();
        highest[r] = -INFINITY;
    }
    for (int64_t at = 0; at < keys.n; at += W) {
        const int n = (int) std::min<int64_t>(W, keys.n - at);
        Vec mask[R];
        bool is_seen = false;
        for (int r = 0; r < R; ++r) {
            mask[r] = mask_of(rows.mask[r], at, keys.n);
            is_seen |= max_of(mask[r]) > -INFINITY;
        }
        if (!is_seen) {
            continue;
        }
        Vec product[R][W];
        for (int i = 0; i < W; ++i) {
            if (i >= n) {
                for (int r = 0; r < R; ++r) {
                    product[r][i] = zero();
                }
                continue;
            }
            const ggml_fp16_t * k = (const ggml_fp16_t *) (keys.k + (at + i)*keys.k_stride);
            for (int j = 0; j < N; ++j) {
                const Vec part = load(k + j*W);
                for (int r = 0; r < R; ++r) {
                    const Vec q = load(rows.q[r] + j*W);
                    product[r][i] = j == 0 ? mul(part, q) : fma(part, q, product[r][i]);
                }
            }
        }
        float weights[R][W];
        for (int r = 0; r < R; ++r) {
            const Vec score = seen(fma(sums_of(product[r]), all(scale), mask[r]), mask[r]);
            const float best = max_of(score);
            if (best > highest[r]) {
                const Vec smaller = all(expf(highest[r] - best));
                for (int j = 0; j < N; ++j) {
                    sum[r][j] = mul(sum[r][j], smaller);
                }
                weight[r] = mul(weight[r], smaller);
                highest[r] = best;
            }
            // A row that has seen no key yet has no highest score to subtract.
            const Vec w = highest[r] == -INFINITY ? zero() : ggml_v_expf(sub(score, all(highest[r])));
            weight[r] = add(weight[r], w);
            store(weights[r], w);
        }
        for (int i = 0; i < n; ++i) {
            const ggml_fp16_t * v = (const ggml_fp16_t *) (keys.v + (at + i)*keys.v_stride);
            Vec w[R];
            float any = 0.0f;
            for (int r = 0; r < R; ++r) {
                w[r] = all(weights[r][i]);
                any += weights[r][i];
            }
            if (any == 0.0f) {
                continue; // here, too
            }
            for (int j = 0; j < N; ++j) {
                const Vec part = load(v + j*W);
                for (int r = 0; r < R; ++r) {
                    sum[r][j] = fma(part, w[r], sum[r][j]);
                }
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        const float total = sum_of(weight[r]);
        const Vec share = all(total == 0.0f ? 0.0f : 1.0f/total);
        for (int j = 0; j < N; ++j) {
            store(rows.out[r] + j*W, mul(sum[r][j], share));
        }
    }
}

using Attend = void (*)(const Rows &, const Keys &, float);

// How many rows of D values have their sums in registers.
template <int D>
constexpr int most_rows() {
    return std::max(1, std::min(4, REGISTERS*W/D));
}

template <int D>
Attend attend_rows(int n) {
    if constexpr (most_rows<D>() >= 4) {
        if (n == 4) { return attend<D, 4>; }
    }
    if constexpr (most_rows<D>() >= 3) {
        if (n == 3) { return attend<D, 3>; }
    }
    if constexpr (most_rows<D>() >= 2) {
        if (n == 2) { return attend<D, 2>; }
    }
    return attend<D, 1>;
}

// The rows that can be taken together, and the function for n of them; 0 rows: none for this size of head.
int most_rows_of(int64_t d) {
    switch (d) {
        case 32:  return most_rows<32>();
        case 64:  return most_rows<64>();
        case 96:  return most_rows<96>();
        case 128: return most_rows<128>();
        case 256: return most_rows<256>();
        default:  return 0;
    }
}

Attend attend_of(int64_t d, int n) {
    switch (d) {
        case 32:  return attend_rows<32>(n);
        case 64:  return attend_rows<64>(n);
        case 96:  return attend_rows<96>(n);
        case 128: return attend_rows<128>(n);
        default:  return attend_rows<256>(n);
    }
}

bool is_covered(const ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0], * k = dst->src[1], * v = dst->src[2], * mask = dst->src[3];
    float max_bias, soft_cap;
    memcpy(&max_bias, (const float *) dst->op_params + 1, sizeof(float));
    memcpy(&soft_cap, (const float *) dst->op_params + 2, sizeof(float));
    return q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F16 && v->type == GGML_TYPE_F16
        && k->ne[0] == v->ne[0] && most_rows_of(k->ne[0]) > 0
        && k->ne[2] == v->ne[2] && k->ne[3] == v->ne[3] && q->ne[2] % k->ne[2] == 0 && q->ne[3] == k->ne[3]
        && q->nb[0] == sizeof(float) && k->nb[0] == sizeof(ggml_fp16_t) && v->nb[0] == sizeof(ggml_fp16_t)
        && (!mask || (mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(ggml_fp16_t)))
        && !dst->src[4] && max_bias == 0.0f && soft_cap == 0.0f;
}

void compute(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0], * k = dst->src[1], * v = dst->src[2], * mask = dst->src[3];
    const int64_t d = k->ne[0], n_kv_heads = k->ne[2], n_streams = q->ne[3];
    const int64_t group = q->ne[2]/n_kv_heads;
    const int64_t n_rows = group*q->ne[1]; // that attend to one head's keys, the group of a position together
    const int64_t n_heads = n_kv_heads*n_streams;
    // As many rows together as leave every thread something to do.
    int64_t together = most_rows_of(d);
    while (together > 1 && n_heads*((n_rows + together - 1)/together) < 4*params->nth) {
        --together;
    }
    const int64_t n_blocks = (n_rows + together - 1)/together;
    float scale;
    memcpy(&scale, dst->op_params, sizeof(float));

    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    for (int64_t unit = params->ith; unit < n_heads*n_blocks;
         unit = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const int64_t stream = unit/(n_kv_heads*n_blocks);
        const int64_t kv_head = unit/n_blocks % n_kv_heads;
        const int64_t first = unit % n_blocks*together;
        const int n = (int) std::min(together, n_rows - first);
        Rows rows;
        for (int r = 0; r < n; ++r) {
            const int64_t position = (first + r)/group, head = kv_head*group + (first + r) % group;
            rows.q[r] = (const float *) ((const char *) q->data
                + position*q->nb[1] + head*q->nb[2] + stream*q->nb[3]);
            rows.mask[r] = !mask ? nullptr : (const ggml_fp16_t *) ((const char *) mask->data
                + position*mask->nb[1] + head % mask->ne[2]*mask->nb[2] + stream % mask->ne[3]*mask->nb[3]);
            // The result has heads before positions.
            rows.out[r] = (float *) ((char *) dst->data
                + (stream*dst->ne[2]*dst->ne[1] + head + position*dst->ne[1])*dst->nb[1]);
        }
        const Keys keys = {
            (const char *) k->data + kv_head*k->nb[2] + stream*k->nb[3],
            (const char *) v->data + kv_head*v->nb[2] + stream*v->nb[3],
            k->nb[1], v->nb[1], k->ne[1],
        };
        attend_of(d, n)(rows, keys, scale);
    }
}

#endif

} // namespace

extern "C" void tokenstream_flash_attn_ext(const ggml_compute_params * params, ggml_tensor * dst) {
#ifdef TOKENSTREAM_FLASH_ATTENTION
    if (is_covered(dst) && !params->use_ref) {
        compute(params, dst);
        return;
    }
#endif
    ggml_compute_forward_flash_attn_ext(params, dst);
}
