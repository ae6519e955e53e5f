// What one pass over a graph knows of its operations before it starts (passes.cpp).
#pragma once

#include "fusion.h"
#include "matmul_weights.h"

#include <atomic>
#include <vector>

struct ggml_cgraph;

#ifdef TOKENSTREAM_MATMUL_KERNEL

namespace tokenstream {

constexpr int MAX_PRODUCTS = 3; // query, key and value

// Matrix products of the same rows, computed together. It is attached to the first of them (ggml_tensor::extra).
struct Step {
    ggml_tensor * products[MAX_PRODUCTS];
    int n_products;
    Activations * activations; // the quantized rows; with `apart`, of the first thread
    bool quantize;             // else an earlier operation has done it
    bool apart;                // each thread quantizes all rows for itself, which is faster than a barrier
    // The rows are the product of a norm and its weights, computed when they are quantized. null: they are in memory.
    const ggml_tensor * norm, * scaled;
    const ggml_tensor * sum;      // the norm's input, computed too. null: it is in memory
    Activations * gated;          // SiLU(first product)*second product, quantized: the only result. null: none
    std::atomic<int64_t> * taken; // chunks of the share of each thread
};

// A pass, with memory that is kept for later passes.
class Pass {
public:
    // Find the matrix products of a graph, and attach steps to them. `fuse`: operations can be computed with others.
    // Those are left out of the graph until finish().
    void prepare(ggml_cgraph * graph, int n_threads, bool fuse);
    void finish();

private:
    ggml_cgraph * graph;
    int n_threads;
    std::vector<int> order; // indices of the nodes that compute
    std::vector<ggml_tensor *> left_out, attentions; // the latter hand on their results
    std::vector<Step> steps;
    std::vector<std::atomic<int64_t>> taken;
    std::vector<Activations> quantized; // rows that a step quantizes for itself
    std::vector<Activations> handed_on; // rows that an operation quantizes for the next step

    void reserve();
    ggml_tensor * node(size_t at) const;
    bool has_uses(size_t at, int n) const;
    bool is_free(const ggml_tensor * result, size_t from, size_t to) const;
    void leave_out(ggml_tensor * node);
    void add_products(Step & step, size_t at);
    int n_readers(const ggml_tensor * rows, size_t at) const;
    void add_norm(Step & step, size_t at);
    void add_gate(Step & step, size_t at);
    bool hands_on(size_t at) const;
};

} // namespace tokenstream

#endif
