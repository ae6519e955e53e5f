// Weights in packed panels: which of a model's weights have them, and where they are.
#pragma once

#include "matmul_kernel.h"

#include "ggml.h"

namespace ggml::cpu {
class tensor_traits;
}

#ifdef TOKENSTREAM_MATMUL_KERNEL

namespace tokenstream {

// A format's functions, for choice by ggml_type.
struct Format {
    ggml_type type;
    int superblock;    // weights
    size_t file_bytes; // of a superblock
    size_t (*panel_size)(int64_t n_blocks);
    void (*pack_panel)(const uint8_t * from, size_t stride, int n_columns, int64_t n_blocks, uint8_t * panel);
    void (*multiply)(const Matrix &, int64_t begin, int64_t end, const Activations * const * rows, float * const * results, int n_rows);
    bool enabled = false; // it passed its test
};

// The format of weights that panels can hold, or null.
const Format * format_of(const ggml_tensor * weights);

// Panels of one expert, or of plain weights (expert 0).
Matrix matrix_of(const Format & f, const ggml_tensor * weights, int64_t expert);

// Whether an operation is a product with weights in panels.
bool has_panels(const ggml_tensor * op);

// How ggml computes such an operation (matmul.cpp).
ggml::cpu::tensor_traits * panel_traits();

} // namespace tokenstream

#endif
