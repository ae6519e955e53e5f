// A buffer type of ggml's CPU backend whose tensors are packed into panels when they are loaded.
//
// llama.cpp offers each weight to the extra buffer types of the CPU in turn. tokenstream_matmul_start() puts this
// one before ggml's own (AMX, repack). Weights that it does not cover stay in ggml's buffers and kernels.

#include "matmul_weights.h"

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "traits.h"

#include <atomic>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#ifdef TOKENSTREAM_MATMUL_KERNEL

namespace tokenstream {

namespace {

template <class F> constexpr Format format(ggml_type type) {
    return {type, F::BLOCKS*BLOCK_SIZE, F::FILE_BYTES, F::panel_size, pack_panel<F>, multiply<F>};
}

Format formats[] = {
    format<Q4_0>(GGML_TYPE_Q4_0), format<Q4_1>(GGML_TYPE_Q4_1), format<Q5_0>(GGML_TYPE_Q5_0),
    format<Q5_1>(GGML_TYPE_Q5_1), format<Q8_0>(GGML_TYPE_Q8_0), format<IQ4_NL>(GGML_TYPE_IQ4_NL),
    format<Q4_K>(GGML_TYPE_Q4_K), format<Q5_K>(GGML_TYPE_Q5_K), format<Q6_K>(GGML_TYPE_Q6_K),
    format<IQ4_XS>(GGML_TYPE_IQ4_XS),
};

int64_t n_panels(const ggml_tensor * weights) { return (weights->ne[1] + COLUMNS - 1)/COLUMNS; }

// Bytes of one expert, or of plain weights.
size_t packed_size(const Format & f, const ggml_tensor * weights) {
    return n_panels(weights)*f.panel_size(weights->ne[0]/BLOCK_SIZE);
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
        try {
            for (unsigned n = 1; n < std::min(16u, std::thread::hardware_concurrency()); ++n) {
                helpers.emplace_back(work);
            }
        } catch (const std::system_error &) {
            // The limit of threads is reached: those that run do the work.
        }
    }
    work();
    for (std::thread & helper : helpers) {
        helper.join();
    }
}

ggml_backend_buffer_type * buffer_type();

class BufferTraits : ggml::cpu::extra_buffer_type {
    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        const ggml_tensor * weights = op->src[0], * x = op->src[1];
        return has_panels(op) && format_of(weights) && ggml_is_contiguous(weights) && weights->ne[3] == 1
            && (op->op == GGML_OP_MUL_MAT_ID || weights->ne[2] == 1) && x->type == GGML_TYPE_F32
            && x->nb[0] == sizeof(float) && (!x->buffer || ggml_backend_buft_is_host(x->buffer->buft));
    }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        return has_panels(op) ? panel_traits() : nullptr;
    }
};

void set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    GGML_ASSERT(offset == 0 && size == ggml_nbytes(tensor));
    pack(*format_of(tensor), tensor, (const uint8_t *) data);
}

// Ask for huge pages: they need fewer address translations, and the processor's prefetching ends with a page.
// Without them, decoding is slower.
void prefer_huge_pages(void * data, size_t size) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = sysconf(_SC_PAGESIZE), begin = ((uintptr_t) data + page - 1)/page*page;
    if (begin + page <= (uintptr_t) data + size) {
        madvise((void *) begin, ((uintptr_t) data + size - begin)/page*page, MADV_HUGEPAGE);
    }
#endif
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer) {
        prefer_huge_pages(ggml_backend_buffer_get_base(buffer), size);
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

} // namespace

const Format * format_of(const ggml_tensor * weights) {
    for (const Format & f : formats) {
        if (f.type == weights->type && f.enabled && weights->ne[0] % f.superblock == 0) {
            return &f;
        }
    }
    return nullptr;
}

Matrix matrix_of(const Format & f, const ggml_tensor * weights, int64_t expert) {
    return {(const uint8_t *) weights->data + expert*packed_size(f, weights), weights->ne[1], weights->ne[0]/BLOCK_SIZE};
}

bool has_panels(const ggml_tensor * op) {
    return (op->op == GGML_OP_MUL_MAT || op->op == GGML_OP_MUL_MAT_ID) && op->src[0]->buffer
        && op->src[0]->buffer->buft == buffer_type();
}

} // namespace tokenstream

#endif

// Test the formats on this CPU and use those that pass for the models loaded from now on. Call it once, before
// any model is loaded. Returns the names of formats that fail, or null: this build has no kernels.
extern "C" const char * tokenstream_matmul_start(void) {
#ifdef TOKENSTREAM_MATMUL_KERNEL
    using namespace tokenstream;
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

