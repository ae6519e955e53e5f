// GGML_OP_FLASH_ATTN_EXT for f16 or Q8_0 keys and values on CPUs with AVX2, AVX-512 or NEON.
//
// For fewer than 64 queries, ggml computes one head at a time and accumulates V as f16 in memory. Its results depend
// on the number of queries. attention_kernel.h accumulates in f32 registers, for tiles of rows: heads of a group (GQA)
// and neighbouring positions. A row's result does not depend on the rows beside it.
//
// llama_cpp.cmake compiles this file into ggml-cpu and redirects ggml-cpu.c's call to it. ggml's function computes
// other operations: other types, heads of other sizes, other CPUs.

#include "attention_kernel.h"
#include "fusion.h"

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"
#include "ops.h"

#include <atomic>
#include <cstring>

namespace {

std::atomic<uint64_t> calls{0};

#ifdef TOKENSTREAM_ATTENTION_KERNEL

using namespace tokenstream;

bool is_covered(const ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0], * k = dst->src[1], * v = dst->src[2], * mask = dst->src[3];
    const bool is_half = k->type == GGML_TYPE_F16, is_packed = k->type == GGML_TYPE_Q8_0;
    return q->type == GGML_TYPE_F32 && (is_half || is_packed) && v->type == k->type
        && k->ne[0] == v->ne[0] && k->ne[0] % (is_packed ? 32 : WIDTH) == 0 && k->ne[0] <= MAX_HEAD_SIZE && k->ne[1] > 0
        && k->ne[2] == v->ne[2] && k->ne[3] == v->ne[3] && q->ne[2] % k->ne[2] == 0 && q->ne[3] == k->ne[3]
        && q->nb[0] == sizeof(float) && k->nb[0] == ggml_type_size(k->type) && v->nb[0] == k->nb[0]
        && (!mask || (mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(half)));
}

struct Parameters {
    float scale, max_bias, cap;

    explicit Parameters(const ggml_tensor * dst) { memcpy(this, dst->op_params, sizeof(*this)); }
};

// Slope of a head's mask (Press et al., arXiv:2108.12409).
float slope_of(const Parameters & parameters, int64_t head, int64_t n_heads) {
    if (parameters.max_bias <= 0.0f) {
        return 1.0f;
    }
    const int64_t power = (int64_t) 1 << (int) floorf(log2f((float) n_heads));
    return head < power ? powf(2.0f, -parameters.max_bias*(head + 1)/power)
                        : powf(2.0f, -parameters.max_bias/2*(2*(head - power) + 1)/power);
}

float sink_of(const ggml_tensor * dst, int64_t head) {
    return dst->src[4] ? ((const float *) dst->src[4]->data)[head] : -INFINITY;
}

// Division of an operation into units: KV heads of one stream, rows of each, and all parts of the keys or one.
// A row is one head of a group at one position. Results do not depend on the division.
struct Division {
    int64_t head_size, n_kv_heads, n_heads, n_positions, n_streams, n_keys;
    int64_t group;   // heads of a KV head
    int64_t n_rows;  // of a KV head of a stream
    int64_t n_parts; // of the keys
    // Of a unit:
    int64_t rows, heads;
    bool is_split; // one part of the keys; the parts are merged afterwards

    Division(const ggml_compute_params * params, const ggml_tensor * dst) {
        const ggml_tensor * q = dst->src[0], * k = dst->src[1];
        head_size = k->ne[0], n_keys = k->ne[1], n_kv_heads = k->ne[2];
        n_positions = q->ne[1], n_heads = q->ne[2], n_streams = q->ne[3];
        group = n_heads/n_kv_heads;
        n_rows = group*n_positions;
        n_parts = (n_keys + PART_KEYS - 1)/PART_KEYS;
        const bool can_split = params->nth > 1 && n_parts > 1
            && n_results()*n_parts*partial_size()*sizeof(float) <= params->wsize;
        int64_t least = INT64_MAX;
        const auto consider = [&](int64_t n, int64_t together) {
            for (int split = 0; split <= can_split; ++split) {
                const int64_t cost = estimate(n, together, split, params->nth);
                if (cost < least) {
                    least = cost, rows = n, heads = together, is_split = split;
                }
            }
        };
        for (int64_t n = 1; n <= TILE_ROWS; ++n) {
            consider(n, std::min<int64_t>(n_kv_heads, MAX_HEADS));
            consider(n, 1);
        }
        for (int64_t n = 2*TILE_ROWS; n <= MAX_ROWS; n += TILE_ROWS) {
            consider(n, 1);
        }
    }

    // Time until all threads have finished, in parts of one row. For each head, reading the keys takes as long as
    // three rows, or eight if its neighbours are not read with it. Merging takes as long as one unit.
    int64_t estimate(int64_t n, int64_t together, bool split, int64_t n_threads) const {
        const int64_t reading = n > TILE_ROWS || together == n_kv_heads ? 3 : together == 1 ? 8 : 4;
        const int64_t unit = together*(std::min(n, n_rows) + reading);
        const int64_t units = ceil(n_kv_heads, together)*ceil(n_rows, n)*n_streams;
        return split ? (ceil(units*n_parts, n_threads) + 1)*unit : ceil(units, n_threads)*n_parts*unit;
    }

    static int64_t ceil(int64_t n, int64_t size) { return (n + size - 1)/size; }

    int64_t n_units() const {
        return ceil(n_kv_heads, heads)*ceil(n_rows, rows)*n_streams*(is_split ? n_parts : 1);
    }
    int64_t n_results() const { return n_heads*n_positions*n_streams; }
    int64_t partial_size() const { return 2 + head_size; } // floats: highest score, sum of weights, sums of V
};

// Index of a result in dst, which has heads before positions.
int64_t result_index(const Division & d, int64_t head, int64_t position, int64_t stream) {
    return (stream*d.n_positions + position)*d.n_heads + head;
}

float * result_of(ggml_tensor * dst, int64_t result) {
    return (float *) ((char *) dst->data + result*dst->nb[1]);
}

float * partial_of(const ggml_compute_params * params, const Division & d, int64_t result, int64_t part) {
    return (float *) params->wdata + (result*d.n_parts + part)*d.partial_size();
}

void set_head(Head & head, const ggml_tensor * dst, const Division & d, int64_t kv_head, int64_t stream, int64_t first) {
    const ggml_tensor * q = dst->src[0], * k = dst->src[1], * v = dst->src[2], * mask = dst->src[3];
    const Parameters parameters(dst);
    head.k = (const char *) k->data + kv_head*k->nb[2] + stream*k->nb[3];
    head.v = (const char *) v->data + kv_head*v->nb[2] + stream*v->nb[3];
    head.k_stride = k->nb[1], head.v_stride = v->nb[1];
    head.n_keys = d.n_keys;
    head.size = (int) d.head_size;
    head.cap = parameters.cap;
    head.is_packed = k->type == GGML_TYPE_Q8_0;
    head.n_rows = (int) std::min(d.rows, d.n_rows - first);
    for (int r = 0; r < head.n_rows; ++r) {
        const int64_t position = (first + r)/d.group, query_head = kv_head*d.group + (first + r) % d.group;
        head.rows[r].q = (const float *) ((const char *) q->data
            + position*q->nb[1] + query_head*q->nb[2] + stream*q->nb[3]);
        head.rows[r].mask = !mask ? nullptr : (const half *) ((const char *) mask->data
            + position*mask->nb[1] + query_head % mask->ne[2]*mask->nb[2] + stream % mask->ne[3]*mask->nb[3]);
        head.rows[r].slope = slope_of(parameters, query_head, d.n_heads);
        head.rows[r].sink = sink_of(dst, query_head);
        start(head.rows[r]);
    }
}

// Where a result is computed: at its place, or in `memory` if it is needed quantized only (passes.cpp).
float * place_of(ggml_tensor * dst, int64_t result, float * memory) { return dst->extra ? memory : result_of(dst, result); }

void finish(ggml_tensor * dst, Row & row, int64_t result) {
    finish(row, (int) dst->ne[0]);
#ifdef TOKENSTREAM_MATMUL
    if (dst->extra) {
        quantize_result(row.out, dst->ne[0], dst->extra, result);
    }
#endif
}

// Later rows see more keys and go first.
void compute_unit(const ggml_compute_params * params, ggml_tensor * dst, const Division & d, int64_t unit) {
    const int64_t n_parts = d.is_split ? d.n_parts : 1;
    const int64_t n_groups = Division::ceil(d.n_kv_heads, d.heads), n_blocks = Division::ceil(d.n_rows, d.rows);
    const int64_t first_head = unit % n_groups*d.heads;
    const int64_t part = unit/n_groups % n_parts;
    const int64_t first_row = (n_blocks - 1 - unit/n_groups/n_parts % n_blocks)*d.rows;
    const int64_t stream = unit/n_groups/n_parts/n_blocks;
    const float scale = Parameters(dst).scale;
    Head heads[MAX_HEADS];
    alignas(64) float memory[MAX_ROWS*MAX_HEAD_SIZE];
    const int n_heads = (int) std::min(d.heads, d.n_kv_heads - first_head);
    const auto result = [&](int h, int r) {
        const int64_t row = first_row + r, head = (first_head + h)*d.group + row % d.group;
        return result_index(d, head, row/d.group, stream);
    };
    for (int h = 0; h < n_heads; ++h) {
        set_head(heads[h], dst, d, first_head + h, stream, first_row);
        for (int r = 0; r < heads[h].n_rows; ++r) {
            heads[h].rows[r].out = d.is_split ? partial_of(params, d, result(h, r), part) + 2
                : place_of(dst, result(h, r), memory + (h*d.rows + r)*d.head_size);
        }
    }
    for (int64_t begin = part*PART_KEYS; begin < (d.is_split ? (part + 1)*PART_KEYS : d.n_keys); begin += PART_KEYS) {
        attend(heads, n_heads, begin, scale);
    }
    for (int h = 0; h < n_heads; ++h) {
        for (int r = 0; r < heads[h].n_rows; ++r) {
            Row & row = heads[h].rows[r];
            if (d.is_split) {
                row.out[-2] = row.highest, row.out[-1] = row.total;
            } else {
                finish(dst, row, result(h, r));
            }
        }
    }
}

void merge_parts(const ggml_compute_params * params, ggml_tensor * dst, const Division & d, int64_t result) {
    Row row;
    row.sink = sink_of(dst, result % d.n_heads);
    float memory[MAX_HEAD_SIZE];
    row.out = place_of(dst, result, memory);
    start(row);
    for (int64_t part = 0; part < d.n_parts; ++part) {
        const float * partial = partial_of(params, d, result, part);
        merge(row, partial + 2, partial[0], partial[1], (int) d.head_size);
    }
    finish(dst, row, result);
}

void compute(const ggml_compute_params * params, ggml_tensor * dst) {
    const Division division(params, dst);
    if (params->ith == 0) {
        calls.fetch_add(1, std::memory_order_relaxed);
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    const int64_t n_units = division.n_units();
    for (int64_t unit = params->ith; unit < n_units; unit = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        compute_unit(params, dst, division, unit);
    }
    if (division.is_split) {
        ggml_barrier(params->threadpool);
        for (int64_t result = params->ith; result < division.n_results(); result += params->nth) {
            merge_parts(params, dst, division, result);
        }
    }
}

#endif

} // namespace

bool tokenstream::is_our_attention(const ggml_tensor * op) {
#ifdef TOKENSTREAM_ATTENTION_KERNEL
    return is_covered(op);
#else
    return false;
#endif
}

extern "C" void tokenstream_flash_attn_ext(const ggml_compute_params * params, ggml_tensor * dst) {
#ifdef TOKENSTREAM_ATTENTION_KERNEL
    if (is_covered(dst) && !params->use_ref) {
        compute(params, dst);
        return;
    }
#endif
    ggml_compute_forward_flash_attn_ext(params, dst);
}

// Number of operations computed here since the process started; -1: this build uses ggml's attention only.
extern "C" int64_t tokenstream_attention_calls(void) {
#ifdef TOKENSTREAM_ATTENTION_KERNEL
    return (int64_t) calls.load(std::memory_order_relaxed);
#else
    return -1;
#endif
}
