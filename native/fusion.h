// Parts of operations that are computed with others (passes.h).
#pragma once

#include "ggml.h"

namespace tokenstream {

// Row `index` of an RMS norm times its weights, from the row `x` of the norm's input.
void norm_row(const ggml_tensor * norm, const ggml_tensor * product, const float * x, int64_t index, float * y);

// Whether flash_attention.cpp computes an operation.
bool is_our_attention(const ggml_tensor * op);

// Quantize result `index` of an attention, which has `n` values, for the product that reads it.
void quantize_result(const float * x, int64_t n, void * to, int64_t index);

} // namespace tokenstream
