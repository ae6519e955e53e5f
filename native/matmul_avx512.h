// Vectors for matmul_kernel.h: AVX-512 VNNI.
#pragma once

#include "matmul_formats.h"

#include <immintrin.h>

namespace tokenstream {

constexpr int LANES = 16; // columns of a vector: a panel
constexpr int TILE_ROWS = 6, TILE_VECTORS = 2; // sums, weights and scales fit 32 registers
using Ints = __m512i;
using Floats = __m512;

inline Ints load_ints(const void * from) { return _mm512_loadu_si512(from); }
inline void store_ints(void * to, Ints x) { _mm512_storeu_si512(to, x); }
inline Ints all_ints(int32_t x) { return _mm512_set1_epi32(x); }
inline Ints all_bytes(int x) { return _mm512_set1_epi8((char) x); }
inline Ints bits_and(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Ints bits_or(Ints a, Ints b) { return _mm512_or_si512(a, b); }
inline Ints bits_xor(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
inline Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
template <int N> inline Ints shift_left(Ints x) { return _mm512_slli_epi32(x, N); }
template <int N> inline Ints shift_right(Ints x) { return _mm512_srli_epi32(x, N); }
inline Ints look_up(Ints indices) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *) CODEBOOK)), indices);
}
// Quants 4*V to 4*V + 3, in every lane.
template <int V> inline Ints load_quants(const int8_t * quants) {
    int32_t x;
    memcpy(&x, quants + 4*V, sizeof(x));
    return all_ints(x);
}

inline Floats all_floats(float x) { return _mm512_set1_ps(x); }
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
inline Floats load_halves(const void * from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) from)); }
inline Floats load_unsigned(const void * from) {
    return to_floats(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) from)));
}
inline Floats load_signed(const void * from) {
    return to_floats(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) from)));
}
inline void store_floats(float * to, Floats x) { _mm512_storeu_ps(to, x); }

inline float highest(const float * x) {
    const __m512 a = _mm512_abs_ps(_mm512_loadu_ps(x)), b = _mm512_abs_ps(_mm512_loadu_ps(x + 16));
    return _mm512_reduce_max_ps(_mm512_max_ps(a, b));
}
// Round 16 values times `factor` to bytes; returns the sum of the bytes.
inline int32_t round_half(const float * x, float factor, int8_t * to) {
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(factor)));
    _mm_storeu_si128((__m128i *) to, _mm512_cvtepi32_epi8(q));
    return _mm512_reduce_add_epi32(q);
}

template <class F> constexpr bool IS_SIGNED = false;

template <class F> struct Dot {
    Ints sum;

    template <int V> inline void add(int, Ints weights, Ints quants) { sum = _mm512_dpbusd_epi32(sum, weights, quants); }
};

} // namespace tokenstream
