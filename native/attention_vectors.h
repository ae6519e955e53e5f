// Vectors for attention_kernel.h, with the instructions of AVX-512, AVX2 or NEON. No dependency but the compiler's intrinsics.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace tokenstream {
namespace { // other files define functions of the same names; tests load two variants into one process

using half = uint16_t; // IEEE binary16

constexpr half HIDDEN = 0xFC00; // minus infinity: the mask of a key that a row does not see

#if defined(__aarch64__) && defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 8") // otherwise GCC stores the sums of two registers each to memory in every iteration
#else
#define UNROLL
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define TOKENSTREAM_ATTENTION_KERNEL

constexpr int WIDTH = 16;     // floats per vector
constexpr int TILE_ROWS = 6;  // a tile of 6 x 4 sums fits the 32 registers
constexpr int TILE_WIDTH = 4; // vectors
using Vec = __m512;
using HalfVec = __m256i;
using Eight = __m128i; // halves

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec all(float x) { return _mm512_set1_ps(x); }
inline Vec widen(HalfVec x) { return _mm512_cvtph_ps(x); }
inline HalfVec load_halves(const half * x) { return _mm256_loadu_si256((const HalfVec *) x); }
inline void store(half * to, HalfVec x) { _mm256_storeu_si256((HalfVec *) to, x); }
inline Vec load(const float * x) { return _mm512_loadu_ps(x); }
inline void store(float * to, Vec x) { _mm512_storeu_ps(to, x); }
inline float to_float(half x) { return _cvtsh_ss(x); }
inline void store(half * to, Vec x) { _mm256_storeu_si256((HalfVec *) to, _mm512_cvtps_ph(x, 0)); } // to nearest
inline Vec load_bytes(const int8_t * x) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) x))); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec sign_of(Vec x) { return _mm512_and_ps(x, all(-0.0f)); } // the sign bit alone
inline Vec with_bits(Vec x, Vec bits) { return _mm512_or_ps(x, bits); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline float max_of(Vec x) { return _mm512_reduce_max_ps(x); }
inline float sum_of(Vec x) { return _mm512_reduce_add_ps(x); }
inline Vec where_above(Vec x, float least, Vec value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, all(least), _CMP_GT_OQ), value);
}
// The score, or minus infinity if the mask is: the score can be NaN.
inline Vec unless_hidden(Vec score, Vec mask) {
    return _mm512_mask_mov_ps(score, _mm512_cmp_ps_mask(mask, all(-INFINITY), _CMP_EQ_OQ), mask);
}
// x*2^n, with n in the low bits of `n`.
inline Vec times_power(Vec x, Vec n) {
    const __m512i shifted = _mm512_slli_epi32(_mm512_castps_si512(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), shifted));
}
// One bit per key.
inline uint32_t visible_of(const half * mask) {
    return _mm256_cmpneq_epi16_mask(load_halves(mask), _mm256_set1_epi16((short) HIDDEN));
}
inline bool is_zero(const half * mask) {
    return _mm256_testz_si256(load_halves(mask), load_halves(mask));
}
inline Eight load_eight(const char * x) { return _mm_loadu_si128((const Eight *) x); }
// Eight halves of WIDTH keys, `at(i)` of key i, as rows of a matrix to transpose.
template <class At> inline HalfVec row_of(At at, int i) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(at(i)), at(i + 8), 1);
}
inline HalfVec low_pairs(HalfVec a, HalfVec b) { return _mm256_unpacklo_epi16(a, b); }
inline HalfVec high_pairs(HalfVec a, HalfVec b) { return _mm256_unpackhi_epi16(a, b); }

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define TOKENSTREAM_ATTENTION_KERNEL

constexpr int WIDTH = 8;
constexpr int TILE_ROWS = 6; // 6 x 2 sums fit the 16 registers
constexpr int TILE_WIDTH = 2;
using Vec = __m256;
using HalfVec = __m128i;
using Eight = HalfVec;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec all(float x) { return _mm256_set1_ps(x); }
inline Vec widen(HalfVec x) { return _mm256_cvtph_ps(x); }
inline HalfVec load_halves(const half * x) { return _mm_loadu_si128((const HalfVec *) x); }
inline void store(half * to, HalfVec x) { _mm_storeu_si128((HalfVec *) to, x); }
inline Vec load(const float * x) { return _mm256_loadu_ps(x); }
inline void store(float * to, Vec x) { _mm256_storeu_ps(to, x); }
inline float to_float(half x) { return _cvtsh_ss(x); }
inline void store(half * to, Vec x) { _mm_storeu_si128((HalfVec *) to, _mm256_cvtps_ph(x, 0)); }
inline Vec load_bytes(const int8_t * x) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) x))); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec sign_of(Vec x) { return _mm256_and_ps(x, all(-0.0f)); }
inline Vec with_bits(Vec x, Vec bits) { return _mm256_or_ps(x, bits); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline float max_of(Vec x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
inline float sum_of(Vec x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
inline Vec where_above(Vec x, float least, Vec value) {
    return _mm256_and_ps(_mm256_cmp_ps(x, all(least), _CMP_GT_OQ), value);
}
inline Vec unless_hidden(Vec score, Vec mask) {
    return _mm256_blendv_ps(score, mask, _mm256_cmp_ps(mask, all(-INFINITY), _CMP_EQ_OQ));
}
inline Vec times_power(Vec x, Vec n) {
    const __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), shifted));
}
inline uint32_t visible_of(const half * mask) {
    const __m128i hidden = _mm_cmpeq_epi16(load_halves(mask), _mm_set1_epi16((short) HIDDEN));
    return ~_mm_movemask_epi8(_mm_packs_epi16(hidden, hidden)) & 0xFF;
}
inline bool is_zero(const half * mask) {
    return _mm_testz_si128(load_halves(mask), load_halves(mask));
}
inline Eight load_eight(const char * x) { return _mm_loadu_si128((const Eight *) x); }
template <class At> inline HalfVec row_of(At at, int i) { return at(i); }
inline HalfVec low_pairs(HalfVec a, HalfVec b) { return _mm_unpacklo_epi16(a, b); }
inline HalfVec high_pairs(HalfVec a, HalfVec b) { return _mm_unpackhi_epi16(a, b); }

#elif defined(__aarch64__)
#define TOKENSTREAM_ATTENTION_KERNEL

constexpr int WIDTH = 8;     // as with AVX2, so that results are the same
constexpr int TILE_ROWS = 6; // 6 x 2 sums fit the 32 registers of four floats
constexpr int TILE_WIDTH = 2;
struct Vec { float32x4_t low, high; };
using HalfVec = uint16x8_t;
using Eight = HalfVec;

inline Vec all(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline Vec zero() { return all(0.0f); }
inline Vec widen(HalfVec x) {
    const float16x8_t halves = vreinterpretq_f16_u16(x);
    return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
}
inline HalfVec load_halves(const half * x) { return vld1q_u16(x); }
inline void store(half * to, HalfVec x) { vst1q_u16(to, x); }
inline Vec load(const float * x) { return {vld1q_f32(x), vld1q_f32(x + 4)}; }
inline void store(float * to, Vec x) { vst1q_f32(to, x.low), vst1q_f32(to + 4, x.high); }
inline float to_float(half x) { return vgetq_lane_f32(widen(vdupq_n_u16(x)).low, 0); }
inline void store(half * to, Vec x) {
    const float16x8_t halves = vcvt_high_f16_f32(vcvt_f16_f32(x.low), x.high);
    store(to, vreinterpretq_u16_f16(halves));
}
inline Vec load_bytes(const int8_t * x) {
    const int16x8_t shorts = vmovl_s8(vld1_s8(x));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(shorts))), vcvtq_f32_s32(vmovl_high_s16(shorts))};
}
inline Vec add(Vec a, Vec b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline Vec sub(Vec a, Vec b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
inline Vec mul(Vec a, Vec b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
inline Vec div(Vec a, Vec b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
inline Vec max(Vec a, Vec b) { return {vmaxq_f32(a.low, b.low), vmaxq_f32(a.high, b.high)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }
inline float max_of(Vec x) { return vmaxvq_f32(vmaxq_f32(x.low, x.high)); }
inline float sum_of(Vec x) {
    const float32x4_t four = vaddq_f32(x.low, x.high);
    return vaddv_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
}
inline float32x4_t where(uint32x4_t bits, float32x4_t x) {
    return vreinterpretq_f32_u32(vandq_u32(bits, vreinterpretq_u32_f32(x)));
}
inline Vec sign_of(Vec x) {
    const uint32x4_t sign = vdupq_n_u32(0x80000000);
    return {where(sign, x.low), where(sign, x.high)};
}
inline float32x4_t with_bits(float32x4_t x, float32x4_t bits) {
    return vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(x), vreinterpretq_u32_f32(bits)));
}
inline Vec with_bits(Vec x, Vec bits) { return {with_bits(x.low, bits.low), with_bits(x.high, bits.high)}; }
inline Vec where_above(Vec x, float least, Vec value) {
    const float32x4_t bound = vdupq_n_f32(least);
    return {where(vcgtq_f32(x.low, bound), value.low), where(vcgtq_f32(x.high, bound), value.high)};
}
inline Vec unless_hidden(Vec score, Vec mask) {
    const float32x4_t hidden = vdupq_n_f32(-INFINITY);
    return {vbslq_f32(vceqq_f32(mask.low, hidden), mask.low, score.low),
            vbslq_f32(vceqq_f32(mask.high, hidden), mask.high, score.high)};
}
inline float32x4_t times_power(float32x4_t x, float32x4_t n) {
    const int32x4_t shifted = vshlq_n_s32(vreinterpretq_s32_f32(n), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), shifted));
}
inline Vec times_power(Vec x, Vec n) { return {times_power(x.low, n.low), times_power(x.high, n.high)}; }
inline uint32_t visible_of(const half * mask) {
    const uint8x8_t bits = vcreate_u8(0x8040201008040201);
    const uint8x8_t hidden = vmovn_u16(vceqq_u16(load_halves(mask), vdupq_n_u16(HIDDEN)));
    return vaddv_u8(vbic_u8(bits, hidden));
}
inline bool is_zero(const half * mask) { return vmaxvq_u16(load_halves(mask)) == 0; }
inline Eight load_eight(const char * x) { return vld1q_u16((const half *) x); }
template <class At> inline HalfVec row_of(At at, int i) { return at(i); }
inline HalfVec low_pairs(HalfVec a, HalfVec b) { return vzip1q_u16(a, b); }
inline HalfVec high_pairs(HalfVec a, HalfVec b) { return vzip2q_u16(a, b); }

#endif

#ifdef TOKENSTREAM_ATTENTION_KERNEL

inline Vec load(const half * x) { return widen(load_halves(x)); }

// 2^x for x <= 0, relative error below 2e-7; exactly 0 below -126.
inline Vec exp2_of(Vec x) {
    const Vec magic = all(12582912.0f); // 1.5*2^23: the low bits of the sum are x, rounded
    const Vec bounded = max(x, all(-126.0f));
    const Vec n = add(bounded, magic);
    const Vec rest = sub(bounded, sub(n, magic)); // -0.5 to 0.5
    Vec p = all(1.32647273e-3f);
    p = fma(p, rest, all(9.67151299e-3f));
    p = fma(p, rest, all(5.55073358e-2f));
    p = fma(p, rest, all(2.40222424e-1f));
    p = fma(p, rest, all(6.93147004e-1f));
    p = fma(p, rest, all(1.0f));
    return where_above(x, -126.0f, times_power(p, n));
}

// tanh(x/(2*log2(e))), error below 1e-7.
inline Vec tanh_of(Vec x) {
    const Vec sign = sign_of(x), power = exp2_of(with_bits(x, all(-0.0f)));
    return with_bits(div(sub(all(1.0f), power), add(all(1.0f), power)), sign);
}

// 32 bytes with a common scale: ggml's Q8_0.
struct Block {
    half scale;
    int8_t bytes[32];
};

// Elements of a row of blocks, rounded to halves.
inline void unpack(const Block * from, int size, half * to) {
    for (int j = 0; j < size; j += 32, ++from, to += 32) {
        const Vec scale = all(to_float(from->scale));
        for (int i = 0; i < 32; i += WIDTH) {
            store(to + i, mul(load_bytes(from->bytes + i), scale));
        }
    }
}

// Eight halves of each of WIDTH keys, `stride` bytes apart, as eight vectors of one half per key.
inline void transpose(const char * from, size_t stride, HalfVec * to) {
    // Hidden from the compiler, four pointers and a stride address all keys. Otherwise it computes 16 pointers
    // and keeps them on the stack.
    const char * quad[WIDTH/4];
    for (int i = 0; i < WIDTH/4; ++i) {
        quad[i] = from + 4*i*stride;
        asm("" : "+r"(quad[i]));
    }
    const auto at = [&](int i) { return load_eight(quad[i/4] + i%4*stride); };
    HalfVec a[8], b[8];
    for (int i = 0; i < 8; ++i) {
        a[i] = row_of(at, i);
    }
    // Three perfect shuffles of the eight rows transpose them.
    for (int i = 0; i < 4; ++i) {
        b[2*i] = low_pairs(a[i], a[i + 4]), b[2*i + 1] = high_pairs(a[i], a[i + 4]);
    }
    for (int i = 0; i < 4; ++i) {
        a[2*i] = low_pairs(b[i], b[i + 4]), a[2*i + 1] = high_pairs(b[i], b[i + 4]);
    }
    for (int i = 0; i < 4; ++i) {
        to[2*i] = low_pairs(a[i], a[i + 4]), to[2*i + 1] = high_pairs(a[i], a[i + 4]);
    }
}

#endif

} // namespace
} // namespace tokenstream
