// GGML_OP_MUL_MAT and GGML_OP_MUL_MAT_ID for quantized weights, with the panels and tiles of matmul_kernel.h.
//
// llama.cpp offers each weight to the extra buffer types of the CPU in turn. tokenstream_matmul_start() puts one
// before ggml's own (AMX, repack). Weights that it accepts are packed when they are loaded; their operations are
// computed here. All others stay in ggml's buffers and kernels.

#undef ggml_graph_compute // llama_cpp.cmake replaces the name in all C++ sources

#include "matmul_kernel.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "traits.h"

#include <atomic>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

namespace {

std::atomic<uint64_t> calls{0};

#ifdef TOKENSTREAM_MATMUL_KERNEL

using namespace tokenstream;

// A format's functions, for choice by ggml_type.
struct Format {
    ggml_type type;
    int superblock; // weights
    size_t file_bytes; // of a superblock
    size_t (*panel_size)(int64_t n_blocks);
    void (*pack_panel)(const uint8_t * from, size_t stride, int n_columns, int64_t n_blocks, uint8_t * panel);
    void (*multiply)(const Matrix &, int64_t begin, int64_t end, const Activations * const * rows, float * const * results, int n_rows);
    bool enabled = false;
};

template <class F> constexpr Format format(ggml_type type) {
    return {type, F::BLOCKS*BLOCK_SIZE, F::FILE_BYTES, F::panel_size, pack_panel<F>, multiply<F>};
}

Format formats[] = {
    format<Q4_0>(GGML_TYPE_Q4_0), format<Q4_1>(GGML_TYPE_Q4_1), format<Q5_0>(GGML_TYPE_Q5_0),
    format<Q5_1>(GGML_TYPE_Q5_1), format<Q8_0>(GGML_TYPE_Q8_0), format<IQ4_NL>(GGML_TYPE_IQ4_NL),
    format<Q4_K>(GGML_TYPE_Q4_K), format<Q5_K>(GGML_TYPE_Q5_K), format<Q6_K>(GGML_TYPE_Q6_K),
    format<IQ4_XS>(GGML_TYPE_IQ4_XS),
};

const Format * format_of(const ggml_tensor * weights) {
    for (const Format & f : formats) {
        if (f.type == weights->type && f.enabled && weights->ne[0] % f.superblock == 0) {
            return &f;
        }
    }
    return nullptr;
}

int64_t n_panels(const ggml_tensor * weights) { return (weights->ne[1] + COLUMNS - 1)/COLUMNS; }

// Bytes of one expert, or of all weights.
size_t packed_size(const Format & f, const ggml_tensor * weights) {
    return n_panels(weights)*f.panel_size(weights->ne[0]/BLOCK_SIZE);
}

Matrix matrix_of(const Format & f, const ggml_tensor * weights, int64_t expert) {
    return {(const uint8_t *) weights->data + expert*packed_size(f, weights), weights->ne[1], weights->ne[0]/BLOCK_SIZE};
}

void pack(const Format & f, ggml_tensor * weights, const uint8_t * from) {
    const int64_t n_blocks = weights->ne[0]/BLOCK_SIZE, panels = n_panels(weights), total = panels*weights->ne[2];
    const size_t stride = weights->ne[0]/f.superblock*f.file_bytes, size = f.panel_size(n_blocks);
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        for (int64_t i = next++; i < total; i = next++) {
            const int64_t first = i%panels*COLUMNS;
            f.pack_panel(from + (i/panels*weights->ne[1] + first)*stride, stride,
                (int) std::min<int64_t>(COLUMNS, weights->ne[1] - first), n_blocks, (uint8_t *) weights->data + i*size);
        }
    };
    std::vector<std::thread> helpers;
    if (ggml_nbytes(weights) > (1 << 20)) {
        for (unsigned n = 1; n < std::min(16u, std::thread::hardware_concurrency()); ++n) {
            helpers.emplace_back(work);
        }
    }
    work();
    for (std::thread & helper : helpers) {
        helper.join();
    }
}

// What one pass over a graph knows of an operation before it starts.
struct Step {
    Activations * activations; // the quantized rows; with `apart`, of the first thread
    bool quantize;             // else an earlier operation with the same rows has done it
    bool apart;                // each thread quantizes all rows for itself, which is faster than a barrier
    std::atomic<int64_t> next; // chunk that no thread has taken
};

// Memory of one pass, kept between passes.
struct Pass {
    std::vector<Activations> activations;
    std::vector<Step> steps;
};

constexpr int64_t MAX_APART = 96;   // blocks
constexpr int64_t CHUNK_WORK = 512; // blocks of rows times vectors of columns: some microseconds
constexpr int MAX_LISTED = 128;     // rows whose addresses are listed at a time

bool is_ours(const ggml_tensor * op);

// Whether the bytes of two tensors overlap.
bool overlap(const ggml_tensor * a, const ggml_tensor * b) {
    return (char *) a->data < (char *) b->data + ggml_nbytes(b) && (char *) b->data < (char *) a->data + ggml_nbytes(a);
}

int64_t n_blocks_of_rows(const ggml_tensor * op) { return op->src[0]->ne[0]/BLOCK_SIZE*ggml_nrows(op->src[1]); }

// Find the operations of a graph that are computed here, and attach a step to each. Consecutive ones with the
// same rows (query, key and value; gate and up) quantize them once.
void prepare(Pass & pass, ggml_cgraph * graph, int n_threads) {
    int64_t n_steps = 0, most = 0;
    for (int i = 0; i < graph->n_nodes; ++i) {
        if (is_ours(graph->nodes[i])) {
            ++n_steps;
            const int64_t n = n_blocks_of_rows(graph->nodes[i]);
            most = std::max(most, n <= MAX_APART ? n*n_threads : n);
        }
    }
    if ((int64_t) pass.steps.size() < n_steps) {
        pass.steps = std::vector<Step>(n_steps);
    }
    if ((int64_t) pass.activations.size() < most) {
        pass.activations.resize(most);
    }
    const ggml_tensor * quantized = nullptr;
    Step * step = pass.steps.data();
    for (int i = 0; i < graph->n_nodes; ++i) {
        ggml_tensor * node = graph->nodes[i];
        if (is_ours(node)) {
            step->activations = pass.activations.data();
            step->quantize = node->src[1] != quantized;
            step->apart = n_blocks_of_rows(node) <= MAX_APART;
            step->next.store(n_threads, std::memory_order_relaxed);
            quantized = node->src[1];
            node->extra = step++;
        }
        if (quantized && node != quantized && !ggml_is_empty(node) && overlap(node, quantized)) {
            quantized = nullptr; // computed in place
        }
    }
}

// Quantize blocks `at` to `end` of the rows of x, counted over all rows.
void quantize_rows(const ggml_tensor * x, int64_t at, int64_t end, Activations * to) {
    const int64_t n_blocks = x->ne[0]/BLOCK_SIZE;
    while (at < end) {
        const int64_t row = at/n_blocks, block = at%n_blocks, n = std::min(n_blocks - block, end - at);
        const char * from = (const char *) x->data + row%x->ne[1]*x->nb[1] + row/x->ne[1]%x->ne[2]*x->nb[2]
            + row/x->ne[1]/x->ne[2]*x->nb[3];
        quantize((const float *) from + block*BLOCK_SIZE, n, to + at);
        at += n;
    }
}

// The rows of one operation: where they are, and where their results go.
class Rows {
    ggml_tensor * op;
    const Activations * activations;
    int64_t n_blocks;
    std::vector<int32_t> order, ends; // with experts: results ordered by expert, and where each expert's end

public:
    Rows(ggml_tensor * op, const Activations * activations)
        : op(op), activations(activations), n_blocks(op->src[0]->ne[0]/BLOCK_SIZE) {
        if (op->op == GGML_OP_MUL_MAT_ID) {
            order_by_expert();
        }
    }

    int64_t begin(int64_t expert) const { return expert == 0 ? 0 : ends[expert - 1]; }
    int64_t end(int64_t expert) const { return ends.empty() ? ggml_nrows(op) : ends[expert]; }

    // Results `first` to `first` + n.
    void list(int64_t first, int n, const Activations ** rows, float ** results) const {
        int64_t i1 = first%op->ne[1], i2 = first/op->ne[1]%op->ne[2], i3 = first/op->ne[1]/op->ne[2];
        for (int i = 0; i < n; ++i) {
            if (order.empty()) {
                rows[i] = activations + n_blocks*(first + i);
            } else {
                const ggml_tensor * x = op->src[1];
                i1 = order[first + i]%op->ne[1], i2 = order[first + i]/op->ne[1];
                rows[i] = activations + n_blocks*(i2*x->ne[1] + i1%x->ne[1]);
            }
            results[i] = (float *) ((char *) op->data + i1*op->nb[1] + i2*op->nb[2] + i3*op->nb[3]);
            if (++i1 == op->ne[1]) {
                i1 = 0;
                if (++i2 == op->ne[2]) {
                    i2 = 0, ++i3;
                }
            }
        }
    }

private:
    // ids[token][choice] is an expert; its result is at [token][choice] too.
    void order_by_expert() {
        const ggml_tensor * ids = op->src[2];
        const auto expert = [&](int64_t at) {
            return *(const int32_t *) ((const char *) ids->data + at/op->ne[1]*ids->nb[1] + at%op->ne[1]*ids->nb[0]);
        };
        const int64_t n = ggml_nrows(op);
        ends.assign(op->src[0]->ne[2] + 1, 0);
        for (int64_t at = 0; at < n; ++at) {
            ++ends[expert(at) + 1];
        }
        for (size_t e = 1; e < ends.size(); ++e) {
            ends[e] += ends[e - 1];
        }
        order.resize(n);
        for (int64_t at = 0; at < n; ++at) {
            order[ends[expert(at)]++] = (int32_t) at; // ends[e]: first the begin of e, at last its end
        }
    }
};

void multiply_chunk(const Format & f, const Matrix & matrix, int64_t begin, int64_t end, const Rows & rows, int64_t first, int64_t last) {
    const Activations * from[MAX_LISTED];
    float * to[MAX_LISTED];
    while (first < last) {
        const int n = (int) std::min<int64_t>(MAX_LISTED/TILE_ROWS*TILE_ROWS, last - first);
        rows.list(first, n, from, to);
        f.multiply(matrix, begin, end, from, to, n);
        first += n;
    }
}

// How an operation is divided into chunks. Small operations have one a thread: taking the next costs more than
// waiting for the last. Larger ones have several, so that threads that finish early take more.
struct Division {
    int64_t n_experts, vectors, unit, column_parts, row_parts = 1;

    Division(const Format & f, const ggml_tensor * op, int n_threads) {
        n_experts = op->src[0]->ne[2];
        vectors = n_vectors(matrix_of(f, op->src[0], 0));
        unit = vectors/TILE_VECTORS < n_threads ? 1 : TILE_VECTORS;
        const int64_t n_rows = ggml_nrows(op)/n_experts; // of an expert, on average
        const int64_t rounds = std::max<int64_t>(1, vectors*n_rows*op->src[0]->ne[0]/BLOCK_SIZE/CHUNK_WORK/n_threads);
        column_parts = std::min((vectors + unit - 1)/unit, n_threads*rounds);
        if (column_parts < n_threads*std::min<int64_t>(rounds, 2)) {
            // Fewer columns than threads need.
            row_parts = std::max<int64_t>(1, std::min(n_rows/(4*TILE_ROWS), 4*n_threads/column_parts));
        }
    }

    int64_t n_chunks() const { return column_parts*row_parts*n_experts; }

    // The first vector of columns of a part.
    int64_t vector(int64_t part) const {
        return std::min(vectors, (vectors + unit - 1)/unit*part/column_parts*unit);
    }
};

void compute(const Format & f, ggml_compute_params * params, ggml_tensor * op) {
    Step & step = *(Step *) op->extra;
    const int64_t blocks = n_blocks_of_rows(op);
    Activations * activations = step.activations + (step.apart ? params->ith*blocks : 0);
    if (params->ith == 0) {
        calls.fetch_add(1, std::memory_order_relaxed);
    }
    if (step.quantize && step.apart) {
        quantize_rows(op->src[1], 0, blocks, activations);
    } else if (step.quantize) {
        quantize_rows(op->src[1], blocks*params->ith/params->nth, blocks*(params->ith + 1)/params->nth, activations);
        ggml_barrier(params->threadpool);
    }
    const Rows rows(op, activations);
    const Division d(f, op, params->nth);
    for (int64_t i = params->ith; i < d.n_chunks(); i = step.next.fetch_add(1, std::memory_order_relaxed)) {
        const int64_t expert = i/d.column_parts/d.row_parts, part = i/d.column_parts%d.row_parts;
        const int64_t column = i%d.column_parts, begin = rows.begin(expert), n = rows.end(expert) - begin;
        multiply_chunk(f, matrix_of(f, op->src[0], expert), d.vector(column), d.vector(column + 1), rows,
            begin + n*part/d.row_parts, begin + n*(part + 1)/d.row_parts);
    }
}

class Traits : public ggml::cpu::tensor_traits {
    bool work_size(int, const ggml_tensor *, size_t & size) override {
        size = 0;
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        compute(*format_of(op->src[0]), params, op);
        return true;
    }
};

ggml_backend_buffer_type * buffer_type();

bool is_ours(const ggml_tensor * op) {
    return (op->op == GGML_OP_MUL_MAT || op->op == GGML_OP_MUL_MAT_ID) && op->src[0]->buffer
        && op->src[0]->buffer->buft == buffer_type();
}

class BufferTraits : ggml::cpu::extra_buffer_type {
    Traits traits;

    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        const ggml_tensor * weights = op->src[0], * x = op->src[1];
        return is_ours(op) && format_of(weights) && ggml_is_contiguous(weights) && weights->ne[3] == 1
            && (op->op == GGML_OP_MUL_MAT_ID || weights->ne[2] == 1) && x->type == GGML_TYPE_F32
            && x->nb[0] == sizeof(float) && (!x->buffer || ggml_backend_buft_is_host(x->buffer->buft));
    }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        return is_ours(op) ? &traits : nullptr;
    }
};

void set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    GGML_ASSERT(offset == 0 && size == ggml_nbytes(tensor));
    pack(*format_of(tensor), tensor, (const uint8_t *) data);
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer) {
        buffer->buft = type;
        buffer->iface.set_tensor = set_tensor;
        buffer->iface.get_tensor = nullptr;
        buffer->iface.cpy_tensor = nullptr;
    }
    return buffer;
}

size_t alloc_size(ggml_backend_buffer_type_t, const ggml_tensor * tensor) {
    const Format * f = format_of(tensor);
    return f ? packed_size(*f, tensor)*tensor->ne[2] : ggml_nbytes(tensor);
}

ggml_backend_buffer_type * buffer_type() {
    static ggml_backend_buffer_type type = {
        {
            [](ggml_backend_buffer_type_t) { return "CPU_PANELS"; },
            alloc_buffer,
            [](ggml_backend_buffer_type_t) -> size_t { return 64; },
            nullptr,
            alloc_size,
            nullptr,
        },
        ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
        new BufferTraits(),
    };
    return &type;
}

// Compare products of this CPU with ggml's dequantization of the same weights.
bool is_sound(const Format & f) {
    constexpr int64_t K = 512, N = 2*COLUMNS + 5, M = 7;
    constexpr int64_t BLOCKS = K/BLOCK_SIZE;
    uint32_t state = 1;
    const auto random = [&] { return (float) ((state = state*1664525u + 1013904223u) >> 8)/(1 << 23) - 1.0f; };
    std::vector<float> weights(K*N), x(K*M), y(N*M);
    std::generate(weights.begin(), weights.end(), random);
    std::generate(x.begin(), x.end(), random);
    const size_t stride = K/f.superblock*f.file_bytes, size = f.panel_size(BLOCKS);
    std::vector<uint8_t> file(stride*N), panels(size*((N + COLUMNS - 1)/COLUMNS));
    ggml_quantize_chunk(f.type, weights.data(), file.data(), 0, N, K, nullptr);
    ggml_get_type_traits(f.type)->to_float(file.data(), weights.data(), K*N);
    for (int64_t first = 0; first < N; first += COLUMNS) {
        f.pack_panel(file.data() + first*stride, stride, (int) std::min<int64_t>(COLUMNS, N - first), BLOCKS,
            panels.data() + first/COLUMNS*size);
    }
    std::vector<Activations> activations(BLOCKS*M);
    std::vector<const Activations *> rows(M);
    std::vector<float *> results(M);
    for (int64_t m = 0; m < M; ++m) {
        quantize(x.data() + m*K, BLOCKS, activations.data() + m*BLOCKS);
        rows[m] = activations.data() + m*BLOCKS, results[m] = y.data() + m*N;
    }
    const Matrix matrix = {panels.data(), N, BLOCKS};
    f.multiply(matrix, 0, n_vectors(matrix), rows.data(), results.data(), M);
    double error = 0.0, total = 0.0;
    for (int64_t m = 0; m < M; ++m) {
        for (int64_t n = 0; n < N; ++n) {
            double expected = 0.0;
            for (int64_t k = 0; k < K; ++k) {
                expected += (double) weights[n*K + k]*x[m*K + k];
            }
            error += (expected - y[m*N + n])*(expected - y[m*N + n]), total += expected*expected;
        }
    }
    return error < 1e-4*total; // 1 %; rounding of activations causes 0.3 to 0.7 %
}

#endif

} // namespace

// Test the formats on this CPU and use those that pass for the models loaded from now on. Call it once, before
// any model is loaded. Returns the names of formats that fail, or null: this build has no kernels.
extern "C" const char * tokenstream_matmul_start(void) {
#ifdef TOKENSTREAM_MATMUL_KERNEL
    static const std::string failed = [] {
        std::string names;
        for (Format & f : formats) {
            f.enabled = is_sound(f);
            if (!f.enabled) {
                names += (names.empty() ? "" : ", ") + std::string(ggml_type_name(f.type));
            }
        }
        auto & types = ggml_backend_cpu_get_extra_buffer_types();
        types.insert(types.begin(), buffer_type());
        return names;
    }();
    return failed.c_str();
#else
    return nullptr;
#endif
}

// ggml_graph_compute, as ggml-cpu.cpp calls it (llama_cpp.cmake).
extern "C" ggml_status tokenstream_graph_compute(ggml_cgraph * graph, ggml_cplan * plan) {
#ifdef TOKENSTREAM_MATMUL_KERNEL
    thread_local Pass pass;
    prepare(pass, graph, plan->n_threads);
#endif
    return ggml_graph_compute(graph, plan);
}

// Operations computed here since the process started.
extern "C" int64_t tokenstream_matmul_calls(void) {
    return (int64_t) calls.load(std::memory_order_relaxed);
}
