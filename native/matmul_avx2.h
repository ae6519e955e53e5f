// Vectors for matmul_kernel.h: AVX2, with VNNI if the CPU has it.
#pragma once

#include "matmul_formats.h"

#include <immintrin.h>

namespace tokenstream {

constexpr int LANES = 8; // columns of a vector: half a panel
constexpr int TILE_ROWS = 4, TILE_VECTORS = 1; // of 16 registers
using Ints = __m256i;
using Floats = __m256;

inline Ints load_ints(const void * from) { return _mm256_loadu_si256((const __m256i *) from); }
inline void store_ints(void * to, Ints x) { _mm256_storeu_si256((__m256i *) to, x); }
inline Ints all_ints(int32_t x) { return _mm256_set1_epi32(x); }
inline Ints all_bytes(int x) { return _mm256_set1_epi8((char) x); }
inline Ints bits_and(Ints a, Ints b) { return _mm256_and_si256(a, b); }
inline Ints bits_or(Ints a, Ints b) { return _mm256_or_si256(a, b); }
inline Ints bits_xor(Ints a, Ints b) { return _mm256_xor_si256(a, b); }
inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
template <int N> inline Ints shift_left(Ints x) { return _mm256_slli_epi32(x, N); }
template <int N> inline Ints shift_right(Ints x) { return _mm256_srli_epi32(x, N); }
inline Ints look_up(Ints indices) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) CODEBOOK)), indices);
}
// Quants 4*V to 4*V + 3, in every lane.
template <int V> inline Ints load_quants(const int8_t * quants) {
    int32_t x;
    memcpy(&x, quants + 4*V, sizeof(x));
    return all_ints(x);
}

inline Floats all_floats(float x) { return _mm256_set1_ps(x); }
inline Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
inline Floats load_halves(const void * from) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) from)); }
inline Floats load_unsigned(const void * from) {
    return to_floats(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) from)));
}
inline Floats load_signed(const void * from) {
    return to_floats(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) from)));
}
inline void store_floats(float * to, Floats x) { _mm256_storeu_ps(to, x); }

inline float highest(const float * x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 top = _mm256_andnot_ps(sign, _mm256_loadu_ps(x));
    for (int i = 8; i < BLOCK_SIZE; i += 8) {
        top = _mm256_max_ps(top, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)));
    }
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
inline int32_t round_half(const float * x, float factor, int8_t * to) {
    const __m256 f = _mm256_set1_ps(factor);
    const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), f));
    const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), f));
    const __m256i shorts = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1));
    _mm_storeu_si128((__m128i *) to, bytes);
    const __m256i pairs = _mm256_madd_epi16(shorts, _mm256_set1_epi16(1));
    __m128i y = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xB1)));
}

#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
inline Ints dot(Ints sum, Ints u, Ints s) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(sum, u, s);
#else
    return _mm256_dpbusd_epi32(sum, u, s);
#endif
}

template <class F> constexpr bool IS_SIGNED = false;

template <class F> struct Dot {
    Ints sum;

    template <int V> inline void add(int, Ints weights, Ints quants) { sum = dot(sum, weights, quants); }
};
#else
inline Ints multiply_bytes(Ints u, Ints s) { return _mm256_maddubs_epi16(u, s); } // sums of two, 16 bits
inline Ints add_pairs(Ints x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }

// Products are summed in 16 bits as long as they cannot overflow, then in 32 bits. Two products of 255 and 127
// do: quants of 8 bits are made signed, and their signs are moved to the activations.
template <class F> constexpr bool IS_SIGNED = F::BITS == 8 || F::CODEBOOK;

template <class F> struct Dot {
    static constexpr int SAFE = F::BITS == 4 ? 8 : F::BITS == 5 ? 4 : 2;
    Ints sum, shorts;

    template <int V> inline void add(int count, Ints weights, Ints quants) {
        if constexpr (IS_SIGNED<F>) {
            sum = add_ints(sum, add_pairs(multiply_bytes(_mm256_abs_epi8(weights), _mm256_sign_epi8(quants, weights))));
        } else {
            const Ints products = multiply_bytes(weights, quants);
            shorts = count%SAFE == 0 ? products : _mm256_add_epi16(shorts, products);
            if (count%SAFE == SAFE - 1) {
                sum = add_ints(sum, add_pairs(shorts));
            }
        }
    }
};
#endif

} // namespace tokenstream
