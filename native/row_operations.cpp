// GGML_OP_RMS_NORM, alone or with the multiplication by its weights, and GGML_OP_ROPE.
//
// ggml adds the squares of a row one after another. It computes the cosines and sines of all positions again in
// every layer. Here a row has 16 partial sums, and a thread keeps the rotations of a pass. A row's result does not
// depend on the other rows.
//
// llama_cpp.cmake compiles this file into ggml-cpu and redirects ggml-cpu.c's calls to it. ggml's functions compute
// other cases.

#include "fusion.h"

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"
#include "ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

struct Rows { // of one thread, of the axes 1 to 3
    int64_t begin, end;

    Rows(const ggml_compute_params * params, const ggml_tensor * x) {
        const int64_t n = ggml_nrows(x);
        begin = n*params->ith/params->nth, end = n*(params->ith + 1)/params->nth;
    }
};

// Row `index` of the result's axes 1 to 3 in `x`, whose axes may be shorter: then it is repeated.
template <class T> T * row_of(const ggml_tensor * x, const ggml_tensor * result, int64_t index) {
    const int64_t i1 = index % result->ne[1], i2 = index/result->ne[1] % result->ne[2];
    const int64_t i3 = index/result->ne[1]/result->ne[2];
    return (T *) ((char *) x->data + i1%x->ne[1]*x->nb[1] + i2%x->ne[2]*x->nb[2] + i3%x->ne[3]*x->nb[3]);
}

// --- RMS norm

float mean_of_squares(const float * x, int64_t n) {
    constexpr int LANES = 16;
    typedef float Vector __attribute__((vector_size(4*LANES), aligned(4), may_alias));
    Vector sums = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const Vector values = *(const Vector *) (x + i);
        sums += values*values;
    }
    float total = 0.0f;
    for (; i < n; ++i) {
        total += x[i]*x[i];
    }
    for (int lane = 0; lane < LANES; ++lane) {
        total += sums[lane];
    }
    return total/n;
}

float scale_of(const ggml_tensor * norm, const float * x) {
    float epsilon;
    memcpy(&epsilon, norm->op_params, sizeof(float));
    return 1.0f/sqrtf(mean_of_squares(x, norm->ne[0]) + epsilon);
}

void multiply(const float * x, float scale, const float * weights, float * y, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        y[i] = x[i]*scale*weights[i];
    }
}

// `weights`: null if the norm is not multiplied.
void compute_norm(const ggml_compute_params * params, const ggml_tensor * norm, const ggml_tensor * weights, ggml_tensor * dst) {
    const ggml_tensor * src = norm->src[0];
    const int64_t n = src->ne[0];
    const Rows rows(params, dst);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float * x = row_of<const float>(src, dst, row);
        float * y = row_of<float>(dst, dst, row);
        const float scale = scale_of(norm, x);
        if (weights) {
            multiply(x, scale, row_of<const float>(weights, dst, row), y, n);
        } else {
            for (int64_t i = 0; i < n; ++i) {
                y[i] = x[i]*scale;
            }
        }
    }
}

bool has_f32_rows(const ggml_tensor * x) {
    return x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float);
}

// --- RoPE (Su et al., arXiv:2104.09864) with YaRN (Peng et al., arXiv:2309.00071), as in ggml's ops.cpp

struct RopeParameters { // op_params[1] to [10]
    int32_t n_dims, mode, n_ctx, n_ctx_original;
    float freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow;

    explicit RopeParameters(const ggml_tensor * dst) { memcpy(this, dst->op_params + 1, sizeof(*this)); }
};

// Cosines and sines of the positions that a thread has rotated in this pass.
class Rotations {
  public:
    // Forget all positions unless they are those of an earlier layer.
    void start(const RopeParameters & wanted, const float * wanted_factors, int64_t n_positions) {
        const size_t n = wanted.n_dims/2;
        const bool is_same = memcmp(&parameters, &wanted, sizeof(wanted)) == 0
            && factors.size() == (wanted_factors ? n : 0)
            && (!wanted_factors || memcmp(factors.data(), wanted_factors, n*sizeof(float)) == 0);
        if (!is_same) {
            parameters = wanted;
            factors.assign(wanted_factors, wanted_factors + (wanted_factors ? n : 0));
            positions.clear();
        }
        if ((int64_t) positions.size() < n_positions) {
            positions.resize(n_positions, -1);
            values.resize(n_positions*parameters.n_dims);
        }
    }

    // n_dims/2 cosines, then n_dims/2 sines.
    const float * at(int64_t index, int32_t position) {
        float * cosines = values.data() + index*parameters.n_dims;
        if (positions[index] != position) {
            compute(position, cosines, cosines + parameters.n_dims/2);
            positions[index] = position;
        }
        return cosines;
    }

  private:
    RopeParameters parameters = RopeParameters(&NONE);
    std::vector<float> factors;
    std::vector<int32_t> positions; // -1: not computed
    std::vector<float> values;
    static constexpr ggml_tensor NONE = {};

    void compute(int32_t position, float * cosines, float * sines) const {
        const RopeParameters & p = parameters;
        float dims[2];
        ggml_rope_yarn_corr_dims(p.n_dims, p.n_ctx_original, p.freq_base, p.beta_fast, p.beta_slow, dims);
        const float step = powf(p.freq_base, -2.0f/p.n_dims);
        const float magnitude = p.ext_factor == 0.0f ? p.attn_factor : p.attn_factor*(1.0f + 0.1f*logf(1.0f/p.freq_scale));
        float angle = (float) position;
        for (int i = 0; i < p.n_dims/2; ++i, angle *= step) {
            const float extrapolated = factors.empty() ? angle : angle/factors[i];
            float theta = p.freq_scale*extrapolated;
            if (p.ext_factor != 0.0f) {
                const float ramp = (i - dims[0])/std::max(0.001f, dims[1] - dims[0]);
                const float mix = (1.0f - std::min(1.0f, std::max(0.0f, ramp)))*p.ext_factor;
                theta = theta*(1.0f - mix) + extrapolated*mix;
            }
            cosines[i] = cosf(theta)*magnitude;
            sines[i] = sinf(theta)*magnitude;
        }
    }
};

// The pairs are `step` apart, and their halves `distance`. x and y may be the same row.
template <int STEP> void rotate(const float * x, float * y, int n, int distance, const float * cosines, const float * sines) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
        const float a = x[STEP*i], b = x[STEP*i + distance];
        y[STEP*i] = a*cosines[i] - b*sines[i];
        y[STEP*i + distance] = a*sines[i] + b*cosines[i];
    }
}

bool is_covered_rope(const ggml_tensor * dst) {
    const RopeParameters p(dst);
    return has_f32_rows(dst) && has_f32_rows(dst->src[0]) && p.n_dims % 2 == 0
        && (p.mode == GGML_ROPE_TYPE_NORMAL || p.mode == GGML_ROPE_TYPE_NEOX);
}

void compute_rope(const ggml_compute_params * params, ggml_tensor * dst) {
    thread_local Rotations rotations;
    const ggml_tensor * src = dst->src[0];
    const RopeParameters p(dst);
    const int first = dst->op_params[15], n = p.n_dims/2; // the elements before and after n_dims are copied
    const auto * positions = (const int32_t *) dst->src[1]->data;
    rotations.start(p, dst->src[2] ? (const float *) dst->src[2]->data : nullptr, dst->ne[2]);
    const Rows rows(params, dst);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const int64_t index = row/dst->ne[1] % dst->ne[2];
        const float * cosines = rotations.at(index, positions[index]), * sines = cosines + n;
        const float * x = row_of<const float>(src, dst, row);
        float * y = row_of<float>(dst, dst, row);
        if (p.mode == GGML_ROPE_TYPE_NEOX) {
            rotate<1>(x + first, y + first, n, n, cosines, sines);
        } else {
            rotate<2>(x + first, y + first, n, 1, cosines, sines);
        }
        if (x != y) {
            std::copy(x, x + first, y);
            std::copy(x + first + p.n_dims, x + dst->ne[0], y + first + p.n_dims);
        }
    }
}

} // namespace

void tokenstream::norm_row(const ggml_tensor * norm, const ggml_tensor * product, const float * x, int64_t index, float * y) {
    const ggml_tensor * weights = product->src[product->src[0] == norm];
    multiply(x, scale_of(norm, x), row_of<const float>(weights, product, index), y, norm->ne[0]);
}

extern "C" void tokenstream_rms_norm(const ggml_compute_params * params, ggml_tensor * dst) {
    if (has_f32_rows(dst->src[0]) && !params->use_ref) {
        compute_norm(params, dst, nullptr, dst);
    } else {
        ggml_compute_forward_rms_norm(params, dst);
    }
}

extern "C" void tokenstream_rms_norm_mul(const ggml_compute_params * params, ggml_tensor * norm, ggml_tensor * product) {
    if (has_f32_rows(norm->src[0]) && !params->use_ref) {
        compute_norm(params, norm, product->src[product->src[0] == norm], product);
    } else {
        ggml_compute_forward_rms_norm_mul_fused(params, norm, product);
    }
}

extern "C" void tokenstream_rope(const ggml_compute_params * params, ggml_tensor * dst) {
    if (is_covered_rope(dst) && !params->use_ref) {
        compute_rope(params, dst);
    } else {
        ggml_compute_forward_rope(params, dst);
    }
}
