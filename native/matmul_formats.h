// Weight formats of GGUF files, and their order in memory for matmul_kernel.h.
//
// A weight is scale*(quant - OFFSET) or scale*quant + minimum. Quants have 4, 5, 6 or 8 bits. A block is 32
// weights of one column; formats of K-quants share an f16 scale among 8 blocks, a superblock.
//
// A panel is 16 columns, all of their blocks. It has an area of quants and an area of scales:
//   quants, one block: vectors of 64 bytes. Byte 4*c + t of vector v belongs to column c and k = 4*v + t.
//     4 bits: 4 vectors; the low half of a byte is vector v, the high half is vector v + 4 (k + 16).
//     5 bits: then one vector; bit v of a byte is bit 4 of vector v.
//     6 bits: then two vectors; bits 2*v and 2*v + 1 are bits 4 and 5 of vector v (first) and v + 4 (second).
//     8 bits: 8 vectors.
//   scales, one superblock: for K-quants f16 scale[16], f16 minimum[16]; then for each block the scales of the
//     16 columns, and the minimums.
//
// Sources of the block layouts: ggml-common.h and dequantize_row_* in ggml-quants.c.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace tokenstream {

constexpr int COLUMNS = 16;    // of a panel
constexpr int BLOCK_SIZE = 32; // weights

// One superblock of one column, or one block of a format without superblocks.
struct Unpacked {
    uint8_t quants[8*BLOCK_SIZE];
    uint16_t scale, minimum;   // f16
    uint8_t scales[16];        // of blocks, or of half blocks
    uint8_t minimums[8];       // of blocks
};

// Where a block's scale comes from.
enum class Scales {
    HALF,       // f16
    HALF_MIN,   // f16 scale and f16 minimum
    SUPER_MIN,  // superblock: f16 times unsigned byte, for scale and minimum (subtracted)
    SUPER,      // superblock: f16 times signed byte
    SUPER_HALF, // superblock: f16 times signed byte, one byte for each 16 weights
};

inline uint16_t read_u16(const uint8_t * from) {
    uint16_t x;
    memcpy(&x, from, sizeof(x));
    return x;
}

// Quants of 32 weights with 4 bits: the low halves of 16 bytes are the first 16.
inline void unpack_nibbles(const uint8_t * from, uint8_t * quants) {
    for (int i = 0; i < 16; ++i) {
        quants[i] = from[i] & 15;
        quants[16 + i] = from[i] >> 4;
    }
}

inline void add_high_bits(const uint8_t * from, uint8_t * quants) {
    for (int i = 0; i < 32; ++i) {
        quants[i] |= (from[i/8] >> i%8 & 1) << 4;
    }
}

// Scales and minimums with 6 bits in 12 bytes.
inline void unpack_scales(const uint8_t * from, Unpacked & u) {
    for (int b = 0; b < 4; ++b) {
        u.scales[b] = from[b] & 63;
        u.minimums[b] = from[b + 4] & 63;
        u.scales[b + 4] = (from[b + 8] & 15) | (from[b] >> 6) << 4;
        u.minimums[b + 4] = from[b + 8] >> 4 | (from[b + 4] >> 6) << 4;
    }
}

// Each format: bits of a quant, its offset, whether quants are indices of CODEBOOK, scales, bytes of a superblock
// in the file, and how they are unpacked.
template <int BITS_, int OFFSET_, bool CODEBOOK_, Scales SCALES_, int FILE_BYTES_> struct Layout {
    static constexpr int BITS = BITS_, OFFSET = OFFSET_, FILE_BYTES = FILE_BYTES_;
    static constexpr bool CODEBOOK = CODEBOOK_;
    static constexpr Scales SCALES = SCALES_;
    static constexpr bool MINIMUM = SCALES == Scales::HALF_MIN || SCALES == Scales::SUPER_MIN;
    static constexpr bool HALVES = SCALES == Scales::SUPER_HALF;
    static constexpr int BLOCKS = SCALES >= Scales::SUPER_MIN ? 8 : 1; // of a superblock
    static constexpr size_t QUANT_BYTES = 64*BITS;                     // of a block
    static constexpr size_t HEAD_BYTES = BLOCKS == 1 ? 0 : 2*COLUMNS*(1 + MINIMUM);
    static constexpr size_t SCALE_BYTES = // of a block
        BLOCKS == 1 ? 2*COLUMNS*(1 + MINIMUM) : COLUMNS*(1 + (MINIMUM || HALVES));

    static constexpr size_t quants_size(int64_t n_blocks) { return n_blocks*QUANT_BYTES; }
    static constexpr size_t panel_size(int64_t n_blocks) {
        return (quants_size(n_blocks) + n_blocks/BLOCKS*HEAD_BYTES + n_blocks*SCALE_BYTES + 63)/64*64;
    }
};

struct Q4_0 : Layout<4, 8, false, Scales::HALF, 18> {
    static void unpack(const uint8_t * from, Unpacked & u) {
        u.scale = read_u16(from);
        unpack_nibbles(from + 2, u.quants);
    }
};

struct Q4_1 : Layout<4, 0, false, Scales::HALF_MIN, 20> {
    static void unpack(const uint8_t * from, Unpacked & u) {
        u.scale = read_u16(from), u.minimum = read_u16(from + 2);
        unpack_nibbles(from + 4, u.quants);
    }
};

struct Q5_0 : Layout<5, 16, false, Scales::HALF, 22> {
    static void unpack(const uint8_t * from, Unpacked & u) {
        u.scale = read_u16(from);
        unpack_nibbles(from + 6, u.quants);
        add_high_bits(from + 2, u.quants);
    }
};

struct Q5_1 : Layout<5, 0, false, Scales::HALF_MIN, 24> {
    static void unpack(const uint8_t * from, Unpacked & u) {
        u.scale = read_u16(from), u.minimum = read_u16(from + 2);
        unpack_nibbles(from + 8, u.quants);
        add_high_bits(from + 4, u.quants);
    }
};

struct Q8_0 : Layout<8, 128, false, Scales::HALF, 34> {
    static void unpack(const uint8_t * from, Unpacked & u) {
        u.scale = read_u16(from);
        for (int i = 0; i < 32; ++i) {
            u.quants[i] = from[2 + i] ^ 128; // signed to offset
        }
    }
};

struct IQ4_NL : Layout<4, 128, true, Scales::HALF, 18> {
    static void unpack(const uint8_t * from, Unpacked & u) { Q4_0::unpack(from, u); }
};

struct Q4_K : Layout<4, 0, false, Scales::SUPER_MIN, 144> {
    static void unpack(const uint8_t * from, Unpacked & u) {
        u.scale = read_u16(from), u.minimum = read_u16(from + 2);
        unpack_scales(from + 4, u);
        for (int i = 0; i < 128; ++i) {
            u.quants[i/32*64 + i%32] = from[16 + i] & 15;
            u.quants[i/32*64 + 32 + i%32] = from[16 + i] >> 4;
        }
    }
};

struct Q5_K : Layout<5, 0, false, Scales::SUPER_MIN, 176> {
    static void unpack(const uint8_t * from, Unpacked & u) {
        u.scale = read_u16(from), u.minimum = read_u16(from + 2);
        unpack_scales(from + 4, u);
        for (int i = 0; i < 128; ++i) {
            const uint8_t high = from[16 + i%32] >> i/32*2;
            u.quants[i/32*64 + i%32] = (from[48 + i] & 15) | (high & 1) << 4;
            u.quants[i/32*64 + 32 + i%32] = from[48 + i] >> 4 | (high & 2) << 3;
        }
    }
};

struct Q6_K : Layout<6, 32, false, Scales::SUPER_HALF, 210> {
    static void unpack(const uint8_t * from, Unpacked & u) {
        for (int i = 0; i < 256; ++i) {
            const int half = i/128, part = i/32%4, at = i%32;
            const uint8_t low = from[64*half + 32*(part%2) + at] >> part/2*4;
            const uint8_t high = from[128 + 32*half + at] >> 2*part;
            u.quants[i] = (low & 15) | (high & 3) << 4;
        }
        memcpy(u.scales, from + 192, 16);
        u.scale = read_u16(from + 208);
    }
};

struct IQ4_XS : Layout<4, 128, true, Scales::SUPER, 136> {
    static void unpack(const uint8_t * from, Unpacked & u) {
        u.scale = read_u16(from);
        const uint16_t high = read_u16(from + 2);
        for (int b = 0; b < 8; ++b) {
            u.scales[b] = ((from[4 + b/2] >> 4*(b%2) & 15) | (high >> 2*b & 3) << 4) - 32;
            unpack_nibbles(from + 8 + 16*b, u.quants + 32*b);
        }
    }
};

// Values of IQ4_NL and IQ4_XS, plus 128.
constexpr uint8_t CODEBOOK[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

// Write one column of one block.
template <class F> void pack_quants(const uint8_t * quants, int column, uint8_t * block) {
    constexpr uint32_t BYTES = 0x01010101; // four quants at a time
    uint32_t words[8], high[2] = {0, 0};
    memcpy(words, quants, sizeof(words));
    const auto put = [&](int vector, uint32_t word) { memcpy(block + 64*vector + 4*column, &word, sizeof(word)); };
    for (int v = 0; v < 8; ++v) {
        if (F::BITS == 8) {
            put(v, words[v]);
        } else if (v < 4) {
            put(v, (words[v] & 15*BYTES) | (words[v + 4] & 15*BYTES) << 4);
        }
        if (F::BITS == 5) {
            high[0] |= (words[v] >> 4 & BYTES) << v;
        } else if (F::BITS == 6) {
            high[v/4] |= (words[v] >> 4 & 3*BYTES) << 2*(v%4);
        }
    }
    for (int v = 4; v < F::BITS && F::BITS < 8; ++v) {
        put(v, high[v - 4]);
    }
}

template <class F> void pack_scales(const Unpacked & u, int column, uint8_t * super) {
    const auto put_half = [&](size_t at, uint16_t x) { memcpy(super + at + 2*column, &x, sizeof(x)); };
    put_half(0, u.scale);
    if (F::MINIMUM) {
        put_half(2*COLUMNS, u.minimum);
    }
    for (int b = 0; b < F::BLOCKS && F::BLOCKS > 1; ++b) {
        uint8_t * block = super + F::HEAD_BYTES + b*F::SCALE_BYTES + column;
        block[0] = u.scales[F::HALVES ? 2*b : b];
        if (F::HALVES) {
            block[COLUMNS] = u.scales[2*b + 1];
        } else if (F::MINIMUM) {
            block[COLUMNS] = u.minimums[b];
        }
    }
}

// Pack up to 16 columns. `from`: the first column in the file's order; `stride`: bytes from one column to the next.
template <class F> void pack_panel(const uint8_t * from, size_t stride, int n_columns, int64_t n_blocks, uint8_t * panel) {
    const size_t size = F::panel_size(n_blocks), unset = n_columns < COLUMNS ? 0 : size - 64; // columns, and padding
    memset(panel + unset, 0, size - unset);
    uint8_t * scales = panel + F::quants_size(n_blocks);
    Unpacked u;
    for (int64_t s = 0; s < n_blocks/F::BLOCKS; ++s) {
        for (int c = 0; c < n_columns; ++c) {
            F::unpack(from + c*stride + s*F::FILE_BYTES, u);
            for (int b = 0; b < F::BLOCKS; ++b) {
                pack_quants<F>(u.quants + BLOCK_SIZE*b, c, panel + (s*F::BLOCKS + b)*F::QUANT_BYTES);
            }
            pack_scales<F>(u, c, scales + s*(F::HEAD_BYTES + F::BLOCKS*F::SCALE_BYTES));
        }
    }
}

} // namespace tokenstream
