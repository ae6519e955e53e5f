// GGML_OP_MUL_MAT and GGML_OP_MUL_MAT_ID with weights in panels (matmul_weights.cpp).
//
// A pass over a graph is prepared first (passes.cpp). Then each step divides its rows and columns among ggml's threads.

#undef ggml_graph_compute // llama_cpp.cmake replaces the name in all C++ sources

#include "passes.h"

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "traits.h"
#include "vec.h"

#include <atomic>
#include <vector>

namespace {

std::atomic<uint64_t> calls{0};

#ifdef TOKENSTREAM_MATMUL_KERNEL

using namespace tokenstream;

constexpr int64_t CHUNK_WORK = 512; // blocks of rows times vectors of columns: some microseconds
constexpr int64_t ROUNDS = 8;       // chunks of a thread's share of a large operation, at least
constexpr int64_t PART_ROWS = 64;   // rows of a part, at least, if rows are divided before columns
constexpr int GATED_ROWS = 258;     // rows of gate and up at a time: their results stay in the L2 cache
constexpr int MAX_LISTED = 516;     // rows whose addresses are listed at a time; weights are unpacked once for them

// Quantize blocks `at` to `end` of the rows of x, counted over all rows.
void quantize_rows(const ggml_tensor * x, int64_t at, int64_t end, Activations * to) {
    constexpr int AHEAD = 16*BLOCK_SIZE; // other threads wrote many of the values: their cache lines arrive late
    const int64_t n_blocks = x->ne[0]/BLOCK_SIZE;
    while (at < end) {
        const int64_t row = at/n_blocks, block = at%n_blocks;
        int64_t n = std::min(n_blocks - block, end - at);
        const char * from = (const char *) x->data + row%x->ne[1]*x->nb[1] + row/x->ne[1]%x->ne[2]*x->nb[2]
            + row/x->ne[1]/x->ne[2]*x->nb[3];
        const float * values = (const float *) from + block*BLOCK_SIZE;
        for (; n > 0; --n, ++at, values += BLOCK_SIZE) {
            __builtin_prefetch(values + AHEAD);
            __builtin_prefetch(values + AHEAD + BLOCK_SIZE/2);
            quantize(values, 1, to + at);
        }
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

// Part of a product: vectors of columns `begin` to `end` of rows `first` to `last`.
struct Part {
    int64_t expert, begin, end, first, last;
};

void multiply_part(ggml_tensor * op, const Rows & rows, Part part) {
    const Format & f = *format_of(op->src[0]);
    const Matrix matrix = matrix_of(f, op->src[0], part.expert);
    const Activations * from[MAX_LISTED];
    float * to[MAX_LISTED];
    while (part.first < part.last) {
        const int n = (int) std::min<int64_t>(MAX_LISTED/TILE_ROWS*TILE_ROWS, part.last - part.first);
        rows.list(part.first, n, from, to);
        f.multiply(matrix, part.begin, part.end, from, to, n);
        part.first += n;
    }
}

// Other threads have read the memory before: it takes long until a thread may write it.
void prefetch_for_writing(const Activations * to, int64_t n_blocks) {
    for (const char * at = (const char *) to; at < (const char *) (to + n_blocks) + 63; at += 64) {
#ifdef __x86_64__
        asm volatile("prefetchw %0" : : "m"(*at)); // GCC emits it only with -mprfchw
#else
        __builtin_prefetch(at, 1);
#endif
    }
}

// SiLU(gate)*up of a part, quantized.
void multiply_gated(const Step & step, const Rows & rows, Part part) {
    const int64_t column = part.begin*LANES, width = (part.end - part.begin)*LANES;
    const int64_t n_blocks = step.products[0]->ne[0]/BLOCK_SIZE;
    thread_local std::vector<float> results[2];
    const Activations * from[GATED_ROWS];
    float * to[GATED_ROWS];
    while (part.first < part.last) {
        const int n = (int) std::min<int64_t>(GATED_ROWS, part.last - part.first);
        rows.list(part.first, n, from, to);
        for (int i = 0; i < n; ++i) {
            prefetch_for_writing(step.gated + (part.first + i)*n_blocks + column/BLOCK_SIZE, width/BLOCK_SIZE);
        }
        for (int p = 0; p < 2; ++p) {
            if ((int64_t) results[p].size() < n*width) {
                results[p].resize(n*width);
            }
            for (int i = 0; i < n; ++i) {
                to[i] = results[p].data() + i*width - column; // multiply() adds the column
            }
            const ggml_tensor * weights = step.products[p]->src[0];
            const Format & f = *format_of(weights);
            f.multiply(matrix_of(f, weights, 0), part.begin, part.end, from, to, n);
        }
        for (int i = 0; i < n; ++i) {
            float * gate = results[0].data() + i*width;
            ggml_vec_swiglu_f32((int) width, gate, gate, results[1].data() + i*width);
            quantize(gate, width/BLOCK_SIZE, step.gated + (part.first + i)*n_blocks + column/BLOCK_SIZE);
        }
        part.first += n;
    }
}

int64_t n_vectors(const ggml_tensor * op) { return tokenstream::n_vectors(matrix_of(*format_of(op->src[0]), op->src[0], 0)); }

// How a step is divided into chunks. Small steps have one a thread: taking the next costs more than waiting for the
// last. Larger ones have several, so that threads that finish early take more.
struct Division {
    int64_t n_experts, vectors = 0, unit, column_parts, row_parts = 1;

    Division(const Step & step, int n_threads) {
        const ggml_tensor * op = step.products[0];
        n_experts = op->src[0]->ne[2];
        for (int p = 0; p < (step.gated ? 1 : step.n_products); ++p) {
            vectors += n_vectors(step.products[p]);
        }
        const int64_t n_rows = ggml_nrows(op)/n_experts; // of an expert, on average
        const int64_t least = step.gated ? BLOCK_SIZE/LANES : 1; // whole blocks of results are quantized
        for (unit = n_rows <= FEW_ROWS ? 2*TILE_VECTORS : TILE_VECTORS; unit > 1 && vectors/unit < n_threads;) {
            unit /= 2;
        }
        unit = std::max(unit, least);
        const int64_t work = vectors*n_rows*op->src[0]->ne[0]/BLOCK_SIZE;
        const int64_t rounds = std::max<int64_t>(1, work/CHUNK_WORK/n_threads);
        column_parts = std::min((vectors + unit - 1)/unit, n_threads*rounds);
        // A thread's rows are in its own cache: the same thread quantizes them, and adds and rotates the results.
        row_parts = std::clamp<int64_t>(n_rows/PART_ROWS, 1, n_threads);
        if (const int64_t wanted = n_threads*std::min(rounds, ROUNDS)/n_experts; row_parts*column_parts < wanted) {
            // Fewer columns than threads need.
            row_parts = std::max(row_parts, std::min(n_rows/(4*TILE_ROWS), (wanted + column_parts - 1)/column_parts));
        }
    }

    int64_t n_chunks() const { return column_parts*row_parts*n_experts; }

    // The first vector of columns of a part.
    int64_t vector(int64_t part) const {
        return std::min(vectors, (vectors + unit - 1)/unit*part/column_parts*unit);
    }
};

void multiply_chunk(const Step & step, const Rows * rows, const Division & d, int64_t chunk) {
    const int64_t expert = chunk/d.column_parts/d.row_parts, share = chunk/d.column_parts%d.row_parts;
    const int64_t column = chunk%d.column_parts, first = rows->begin(expert), n = rows->end(expert) - first;
    const Part part = {expert, d.vector(column), d.vector(column + 1), first + n*share/d.row_parts, first + n*(share + 1)/d.row_parts};
    if (step.gated) {
        multiply_gated(step, *rows, part);
        return;
    }
    int64_t at = 0; // the first vector of a product
    for (int p = 0; p < step.n_products; ++p) {
        const int64_t vectors = n_vectors(step.products[p]);
        Part own = part;
        own.begin = std::max(part.begin - at, (int64_t) 0), own.end = std::min(part.end - at, vectors);
        if (own.begin < own.end) {
            multiply_part(step.products[p], rows[p], own);
        }
        at += vectors;
    }
}

#ifdef TOKENSTREAM_ROWS
// Rows `begin` to `end` of a norm, quantized.
void quantize_norm(const Step & step, int64_t begin, int64_t end, Activations * to) {
    const ggml_tensor * x = step.norm->src[0];
    const int64_t n = x->ne[0];
    thread_local std::vector<float> result;
    if ((int64_t) result.size() < n) {
        result.resize(n);
    }
    for (int64_t row = begin; row < end; ++row) {
        const auto at = [&](const ggml_tensor * of) {
            return (float *) ((char *) of->data + row%x->ne[1]*of->nb[1] + row/x->ne[1]%x->ne[2]*of->nb[2]
                + row/x->ne[1]/x->ne[2]*of->nb[3]);
        };
        if (step.sum) {
            ggml_vec_add_f32((int) n, at(step.sum), at(step.sum->src[0]), at(step.sum->src[1]));
        }
        norm_row(step.norm, step.scaled, at(x), row, result.data());
        quantize(result.data(), n/BLOCK_SIZE, to + row*(n/BLOCK_SIZE));
    }
}

#endif

// Share `i` of `n` of the rows.
void quantize_share(const Step & step, int64_t i, int64_t n, Activations * to) {
    const ggml_tensor * rows = step.products[0]->src[1];
#ifdef TOKENSTREAM_ROWS
    if (step.norm) {
        quantize_norm(step, ggml_nrows(rows)*i/n, ggml_nrows(rows)*(i + 1)/n, to);
        return;
    }
#endif
    const int64_t blocks = ggml_nelements(rows)/BLOCK_SIZE;
    quantize_rows(rows, blocks*i/n, blocks*(i + 1)/n, to);
}

void compute(const Step & step, ggml_compute_params * params) {
    const ggml_tensor * x = step.products[0]->src[1];
    Activations * activations = step.activations + (step.apart ? params->ith*(ggml_nelements(x)/BLOCK_SIZE) : 0);
    if (params->ith == 0) {
        calls.fetch_add(step.n_products, std::memory_order_relaxed);
    }
    if (step.quantize && step.apart) {
        quantize_share(step, 0, 1, activations);
    } else if (step.quantize) {
        quantize_share(step, params->ith, params->nth, activations);
        ggml_barrier(params->threadpool);
    }
    std::vector<Rows> rows;
    for (int p = 0; p < step.n_products; ++p) {
        rows.emplace_back(step.products[p], activations);
    }
    const Division d(step, params->nth);
    // A thread's share is contiguous in memory, for the prefetch. After it, chunks of other shares follow.
    // params->nth can be below the plan's n_threads: a thread pool may be smaller.
    const int64_t n_chunks = d.n_chunks();
    for (int k = 0; k < params->nth; ++k) {
        const int of = (params->ith + k)%params->nth;
        const int64_t begin = n_chunks*of/params->nth, end = n_chunks*(of + 1)/params->nth;
        while (begin + step.taken[of].load(std::memory_order_relaxed) < end) {
            const int64_t i = begin + step.taken[of].fetch_add(1, std::memory_order_relaxed);
            if (i < end) {
                multiply_chunk(step, rows.data(), d, i);
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
        compute(*(const Step *) op->extra, params);
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
    pass.prepare(graph, plan->n_threads, !plan->use_ref);
    const ggml_status status = ggml_graph_compute(graph, plan);
    pass.finish();
    return status;
#else
    return ggml_graph_compute(graph, plan);
#endif
}

// Operations computed here since the process started.
extern "C" int64_t tokenstream_matmul_calls(void) {
    return (int64_t) calls.load(std::memory_order_relaxed);
}
