// A shared library with the functions of matmul_kernel.h. Tests compile it once for each instruction set.

#include "../../native/matmul_kernel.h"

#include <cstdlib>

using namespace tokenstream;

namespace {

struct Format {
    const char * name;
    size_t superblock_bytes;
    int64_t superblock; // weights
    size_t (*panel_size)(int64_t n_blocks);
    void (*pack_panel)(const uint8_t * from, size_t stride, int n_columns, int64_t n_blocks, uint8_t * panel);
    void (*multiply)(const Matrix &, int64_t begin, int64_t end, const Activations * const * rows, float * const * results, int n_rows);
};

template <class F> constexpr Format format(const char * name) {
    return {name, F::FILE_BYTES, F::BLOCKS*BLOCK_SIZE, F::panel_size, pack_panel<F>, multiply<F>};
}

constexpr Format formats[] = {
    format<Q4_0>("Q4_0"), format<Q4_1>("Q4_1"), format<Q5_0>("Q5_0"), format<Q5_1>("Q5_1"), format<Q8_0>("Q8_0"),
    format<IQ4_NL>("IQ4_NL"), format<Q4_K>("Q4_K"), format<Q5_K>("Q5_K"), format<Q6_K>("Q6_K"), format<IQ4_XS>("IQ4_XS"),
};

const Format & find(const char * name) {
    for (const Format & f : formats) {
        if (!strcmp(f.name, name)) {
            return f;
        }
    }
    abort();
}

int64_t n_panels(int64_t columns) { return (columns + COLUMNS - 1)/COLUMNS; }

} // namespace

extern "C" int64_t packed_size(const char * format, int64_t columns, int64_t k) {
    return n_panels(columns)*find(format).panel_size(k/BLOCK_SIZE);
}

extern "C" void pack(const char * format, const uint8_t * file, int64_t columns, int64_t k, uint8_t * packed) {
    const Format & f = find(format);
    const size_t stride = k/f.superblock*f.superblock_bytes, size = f.panel_size(k/BLOCK_SIZE);
    for (int64_t p = 0; p < n_panels(columns); ++p) {
        const int64_t first = p*COLUMNS;
        f.pack_panel(file + first*stride, stride, (int) std::min<int64_t>(COLUMNS, columns - first), k/BLOCK_SIZE, packed + p*size);
    }
}

extern "C" int64_t quantized_size(int64_t n_rows, int64_t k) { return n_rows*(k/BLOCK_SIZE)*sizeof(Activations); }

extern "C" void quantize_rows(const float * x, int64_t n_rows, int64_t k, Activations * to) {
    quantize(x, n_rows*(k/BLOCK_SIZE), to);
}

// Scale times quant, for each value of the rows.
extern "C" void values_of(const Activations * rows, int64_t n_rows, int64_t k, double * to) {
    for (int64_t i = 0; i < n_rows*k; ++i) {
        const Activations & block = rows[i/BLOCK_SIZE];
        to[i] = (double) block.scale*block.quants[i%BLOCK_SIZE];
    }
}

// Columns of a vector. `begin` and `end` of multiply_rows are numbers of vectors.
extern "C" int64_t vector_columns() { return LANES; }

// Row r of the results has the product of quantized row order[r].
extern "C" void multiply_rows(const char * format, const uint8_t * packed, int64_t columns, int64_t k, int64_t begin, int64_t end,
                              const Activations * quantized, const int32_t * order, int n_rows, float * results, int64_t stride) {
    const Activations * rows[1000];
    float * to[1000];
    for (int r = 0; r < n_rows; ++r) {
        rows[r] = quantized + order[r]*(k/BLOCK_SIZE);
        to[r] = results + r*stride;
    }
    find(format).multiply({packed, columns, k/BLOCK_SIZE}, begin, end, rows, to, n_rows);
}
