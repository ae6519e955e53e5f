// GGML_OP_FLASH_ATTN_EXT for f16 keys and values on CPUs with AVX2 or AVX-512.
//
// For fewer than 64 queries, ggml computes one head at a time and accumulates V as f16 in memory. Each key then
// depends on the previous store. attention_kernel.h accumulates in f32 registers. It converts K and V once for up
// to four rows: heads of a group (GQA) and neighbouring positions.
//
// llama_cpp.cmake compiles this file into ggml-cpu and redirects ggml-cpu.c's call to it. ggml's function computes
// other operations: other types, ALiBi, soft caps, sinks, other CPUs.

#include "attention_kernel.h"

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"
#include "ops.h"

#include <atomic>
#include <cstring>

namespace {

std::atomic<uint64_t> calls{0};

#ifdef TOKENSTREAM_ATTENTION_KERNEL

using namespace tokenstream;

constexpr int UNITS_PER_THREAD = 4; // units differ in size; a thread takes the next unit when it finishes one
constexpr int64_t MIN_SPLIT = 256;  // keys; below that, merging costs more than it saves

bool is_covered(const ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0], * k = dst->src[1], * v = dst->src[2], * mask = dst->src[3];
    float max_bias, soft_cap;
    memcpy(&max_bias, (const float *) dst->op_params + 1, sizeof(float));
    memcpy(&soft_cap, (const float *) dst->op_params + 2, sizeof(float));
    return q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F16 && v->type == GGML_TYPE_F16
        && k->ne[0] == v->ne[0] && k->ne[0] % WIDTH == 0 && k->ne[0] <= MAX_HEAD_SIZE && k->ne[1] > 0
        && k->ne[2] == v->ne[2] && k->ne[3] == v->ne[3] && q->ne[2] % k->ne[2] == 0 && q->ne[3] == k->ne[3]
        && q->nb[0] == sizeof(float) && k->nb[0] == sizeof(half) && v->nb[0] == sizeof(half)
        && (!mask || (mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(half)))
        && !dst->src[4] && max_bias == 0.0f && soft_cap == 0.0f;
}

// Division of an operation into units: one KV head of one stream, `together` rows, and one part of the keys.
// A row is one head of the group at one position.
struct Division {
    int64_t head_size, n_kv_heads, n_heads, n_positions, n_streams, n_keys;
    int64_t group;    // heads of one KV head
    int64_t together; // rows of a unit
    int64_t n_blocks; // of rows
    int64_t n_parts;  // of the keys
    int64_t part;     // keys

    Division(const ggml_compute_params * params, const ggml_tensor * dst) {
        const ggml_tensor * q = dst->src[0], * k = dst->src[1];
        head_size = k->ne[0], n_keys = k->ne[1], n_kv_heads = k->ne[2];
        n_positions = q->ne[1], n_heads = q->ne[2], n_streams = q->ne[3];
        group = n_heads/n_kv_heads;
        const int64_t enough = UNITS_PER_THREAD*params->nth;
        together = MAX_ROWS;
        set_blocks();
        // Too few units: divide the keys, limited by the work buffer for partial results. Then divide the rows.
        const int64_t fits = params->wsize/(n_results()*partial_size()*sizeof(float));
        const int64_t wanted = params->nth == 1 ? 1 : (enough + n_units() - 1)/n_units();
        n_parts = std::max<int64_t>(1, std::min({wanted, n_keys/MIN_SPLIT, fits}));
        part = ((n_keys + n_parts - 1)/n_parts + BLOCK - 1)/BLOCK*BLOCK;
        n_parts = (n_keys + part - 1)/part;
        while (together > 1 && n_units()*n_parts < enough) {
            --together;
            set_blocks();
        }
    }

    void set_blocks() { n_blocks = (group*n_positions + together - 1)/together; }
    int64_t n_units() const { return n_kv_heads*n_streams*n_blocks; } // of one part
    int64_t n_results() const { return n_heads*n_positions*n_streams; }
    int64_t partial_size() const { return 2 + head_size; } // floats: highest score, sum of weights, sums of V
};

// Index of a result in dst, which has heads before positions.
int64_t result_index(const Division & d, int64_t head, int64_t position, int64_t stream) {
    return (stream*d.n_positions + position)*d.n_heads + head;
}

float * partial_of(const ggml_compute_params * params, const Division & d, int64_t result, int64_t part) {
    return (float *) params->wdata + (result*d.n_parts + part)*d.partial_size();
}

void compute_unit(const ggml_compute_params * params, ggml_tensor * dst, const Division & d, int64_t unit) {
    const ggml_tensor * q = dst->src[0], * k = dst->src[1], * v = dst->src[2], * mask = dst->src[3];
    const int64_t part = unit % d.n_parts;
    const int64_t first = unit/d.n_parts % d.n_blocks*d.together;
    const int64_t kv_head = unit/d.n_parts/d.n_blocks % d.n_kv_heads;
    const int64_t stream = unit/d.n_parts/d.n_blocks/d.n_kv_heads;
    const int64_t begin = part*d.part;
    const int n_rows = (int) std::min(d.together, d.group*d.n_positions - first);
    Rows rows;
    for (int r = 0; r < n_rows; ++r) {
        const int64_t position = (first + r)/d.group, head = kv_head*d.group + (first + r) % d.group;
        rows.q[r] = (const float *) ((const char *) q->data
            + position*q->nb[1] + head*q->nb[2] + stream*q->nb[3]);
        rows.mask[r] = !mask ? nullptr : begin + (const half *) ((const char *) mask->data
            + position*mask->nb[1] + head % mask->ne[2]*mask->nb[2] + stream % mask->ne[3]*mask->nb[3]);
        const int64_t result = result_index(d, head, position, stream);
        rows.partial[r] = d.n_parts == 1 ? nullptr : partial_of(params, d, result, part);
        rows.out[r] = d.n_parts == 1 ? (float *) ((char *) dst->data + result*dst->nb[1]) : rows.partial[r] + 2;
    }
    const Keys keys = {
        (const char *) k->data + kv_head*k->nb[2] + stream*k->nb[3] + begin*k->nb[1],
        (const char *) v->data + kv_head*v->nb[2] + stream*v->nb[3] + begin*v->nb[1],
        k->nb[1], v->nb[1], std::min(d.part, d.n_keys - begin),
    };
    float scale;
    memcpy(&scale, dst->op_params, sizeof(float));
    attend(rows, n_rows, keys, (int) d.head_size, scale);
}

// Merge the parts of a result, each rescaled to the highest score of all parts.
void merge(const ggml_compute_params * params, ggml_tensor * dst, const Division & d, int64_t result) {
    float * out = (float *) ((char *) dst->data + result*dst->nb[1]);
    float highest = -INFINITY, total = 0.0f;
    for (int64_t part = 0; part < d.n_parts; ++part) {
        highest = std::max(highest, partial_of(params, d, result, part)[0]);
    }
    std::fill_n(out, d.head_size, 0.0f);
    for (int64_t part = 0; part < d.n_parts; ++part) {
        const float * partial = partial_of(params, d, result, part);
        if (partial[1] > 0.0f) {
            const float weight = expf(partial[0] - highest);
            total += weight*partial[1];
            for (int64_t j = 0; j < d.head_size; ++j) {
                out[j] += weight*partial[2 + j];
            }
        }
    }
    for (int64_t j = 0; j < d.head_size; ++j) {
        out[j] *= total == 0.0f ? 0.0f : 1.0f/total;
    }
}

void compute(const ggml_compute_params * params, ggml_tensor * dst) {
    const Division division(params, dst);
    const int64_t n_units = division.n_units()*division.n_parts;
    if (params->ith == 0) {
        calls.fetch_add(1, std::memory_order_relaxed);
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    for (int64_t unit = params->ith; unit < n_units; unit = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        compute_unit(params, dst, division, unit);
    }
    if (division.n_parts > 1) {
        ggml_barrier(params->threadpool);
        for (int64_t result = params->ith; result < division.n_results(); result += params->nth) {
            merge(params, dst, division, result);
        }
    }
}

#endif

} // namespace

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
