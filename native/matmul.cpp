// GGML_OP_MUL_MAT and GGML_OP_MUL_MAT_ID with weights in panels (matmul_weights.cpp).
//
// A pass over a graph is prepared first: operations with the same rows quantize them once. Then each operation
// divides its columns, and its rows where columns are few, among ggml's threads.

#undef ggml_graph_compute // llama_cpp.cmake replaces the name in all C++ sources

#include "matmul_weights.h"

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "traits.h"

#include <atomic>
#include <vector>

namespace {

std::atomic<uint64_t> calls{0};

#ifdef TOKENSTREAM_MATMUL_KERNEL

using namespace tokenstream;

// What one pass over a graph knows of an operation before it starts.
struct Step {
    Activations * activations;    // the quantized rows; with `apart`, of the first thread
    bool quantize;                // else an earlier operation with the same rows has done it
    bool apart;                   // each thread quantizes all rows for itself, which is faster than a barrier
    std::atomic<int64_t> * taken; // chunks of the share of each thread
};

// Memory of one pass, kept between passes.
struct Pass {
    std::vector<Activations> activations;
    std::vector<Step> steps;
    std::vector<std::atomic<int64_t>> taken;
};

constexpr int64_t MAX_APART = 96;   // blocks
constexpr int64_t CHUNK_WORK = 512; // blocks of rows times vectors of columns: some microseconds
constexpr int64_t ROUNDS = 8;       // chunks of a thread's share of a large operation, at least
constexpr int MAX_LISTED = 516;     // rows whose addresses are listed at a time; weights are unpacked once for them

// Whether the bytes of two tensors overlap.
bool overlap(const ggml_tensor * a, const ggml_tensor * b) {
    return (char *) a->data < (char *) b->data + ggml_nbytes(b) && (char *) b->data < (char *) a->data + ggml_nbytes(a);
}

int64_t n_blocks_of_rows(const ggml_tensor * op) { return op->src[0]->ne[0]/BLOCK_SIZE*ggml_nrows(op->src[1]); }

// Whether a pass computes the operation here.
bool is_computed(const ggml_tensor * node) { return (node->flags & GGML_TENSOR_FLAG_COMPUTE) && has_panels(node); }

// Find the operations of a graph that are computed here, and attach a step to each. Consecutive ones with the
// same rows (query, key and value; gate and up) quantize them once.
void prepare(Pass & pass, ggml_cgraph * graph, int n_threads) {
    int64_t n_steps = 0, most = 0;
    for (int i = 0; i < graph->n_nodes; ++i) {
        if (is_computed(graph->nodes[i])) {
            ++n_steps;
            const int64_t n = n_blocks_of_rows(graph->nodes[i]);
            most = std::max(most, n <= MAX_APART ? n*n_threads : n);
        }
    }
    if ((int64_t) pass.steps.size() < n_steps) {
        pass.steps.resize(n_steps);
    }
    if ((int64_t) pass.taken.size() < n_steps*n_threads) {
        pass.taken = std::vector<std::atomic<int64_t>>(n_steps*n_threads);
    }
    for (auto & taken : pass.taken) {
        taken.store(0, std::memory_order_relaxed);
    }
    if ((int64_t) pass.activations.size() < most) {
        pass.activations.resize(most);
    }
    const ggml_tensor * quantized = nullptr;
    Step * step = pass.steps.data();
    for (int i = 0; i < graph->n_nodes; ++i) {
        ggml_tensor * node = graph->nodes[i];
        if (is_computed(node)) {
            step->activations = pass.activations.data();
            step->quantize = node->src[1] != quantized;
            step->apart = n_blocks_of_rows(node) <= MAX_APART;
            step->taken = pass.taken.data() + (step - pass.steps.data())*n_threads;
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
        const int64_t n_rows = ggml_nrows(op)/n_experts; // of an expert, on average
        for (unit = n_rows <= FEW_ROWS ? 2*TILE_VECTORS : TILE_VECTORS; unit > 1 && vectors/unit < n_threads;) {
            unit /= 2;
        }
        const int64_t rounds = std::max<int64_t>(1, vectors*n_rows*op->src[0]->ne[0]/BLOCK_SIZE/CHUNK_WORK/n_threads);
        column_parts = std::min((vectors + unit - 1)/unit, n_threads*rounds);
        if (const int64_t wanted = n_threads*std::min(rounds, ROUNDS)/n_experts; column_parts < wanted) {
            // Fewer columns than threads need.
            row_parts = std::max<int64_t>(1, std::min(n_rows/(4*TILE_ROWS), (wanted + column_parts - 1)/column_parts));
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
    const auto multiply_part = [&](int64_t i) {
        const int64_t expert = i/d.column_parts/d.row_parts, part = i/d.column_parts%d.row_parts;
        const int64_t column = i%d.column_parts, begin = rows.begin(expert), n = rows.end(expert) - begin;
        multiply_chunk(f, matrix_of(f, op->src[0], expert), d.vector(column), d.vector(column + 1), rows,
            begin + n*part/d.row_parts, begin + n*(part + 1)/d.row_parts);
    };
    // A thread's share is contiguous in memory, for the prefetch. After it, chunks of other shares follow.
    // params->nth can be below the plan's n_threads: a thread pool may be smaller.
    const int64_t n_chunks = d.n_chunks();
    for (int k = 0; k < params->nth; ++k) {
        const int of = (params->ith + k)%params->nth;
        const int64_t begin = n_chunks*of/params->nth, end = n_chunks*(of + 1)/params->nth;
        while (begin + step.taken[of].load(std::memory_order_relaxed) < end) {
            const int64_t i = begin + step.taken[of].fetch_add(1, std::memory_order_relaxed);
            if (i < end) {
                multiply_part(i);
            }
        }
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

#endif

} // namespace

#ifdef TOKENSTREAM_MATMUL_KERNEL
ggml::cpu::tensor_traits * tokenstream::panel_traits() {
    static Traits traits;
    return &traits;
}
#endif

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
