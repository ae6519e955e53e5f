// Vectors for matmul_kernel.h: NEON with dot products (ARMv8.2).
#pragma once

#include "matmul_formats.h"

#include <arm_neon.h>

namespace tokenstream {

constexpr int LANES = 4; // columns of a vector: a quarter of a panel
constexpr int TILE_ROWS = 4, TILE_VECTORS = 2; // of 32 registers
using Ints = int32x4_t;
using Floats = float32x4_t;

inline uint8x16_t bytes_of(Ints x) { return vreinterpretq_u8_s32(x); }
inline Ints ints_of(uint8x16_t x) { return vreinterpretq_s32_u8(x); }

inline Ints load_ints(const void * from) { return ints_of(vld1q_u8((const uint8_t *) from)); }
inline void store_ints(void * to, Ints x) { vst1q_u8((uint8_t *) to, bytes_of(x)); }
inline Ints all_ints(int32_t x) { return vdupq_n_s32(x); }
inline Ints all_bytes(int x) { return ints_of(vdupq_n_u8((uint8_t) x)); }
inline Ints bits_and(Ints a, Ints b) { return vandq_s32(a, b); }
inline Ints bits_or(Ints a, Ints b) { return vorrq_s32(a, b); }
inline Ints bits_xor(Ints a, Ints b) { return veorq_s32(a, b); }
template <int N> inline Ints shift_left(Ints x) { return vshlq_n_s32(x, N); }
template <int N> inline Ints shift_right(Ints x) {
    if constexpr (N == 0) {
        return x;
    } else {
        return ints_of(vshrq_n_u8(bytes_of(x), N));
    }
}
inline Ints look_up(Ints indices) { return ints_of(vqtbl1q_u8(vld1q_u8(CODEBOOK), bytes_of(indices))); }
// 16 quants. Dot::add() selects four.
template <int> inline Ints load_quants(const int8_t * quants) { return load_ints(quants); }

inline Floats all_floats(float x) { return vdupq_n_f32(x); }
inline Floats to_floats(Ints x) { return vcvtq_f32_s32(x); }
inline Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
inline Floats fnma(Floats a, Floats b, Floats c) { return vfmsq_f32(c, a, b); }
inline Floats load_halves(const void * from) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8((const uint8_t *) from)));
}
inline uint8x8_t load_four(const void * from) {
    uint32_t x;
    memcpy(&x, from, sizeof(x));
    return vcreate_u8(x);
}
inline Floats load_unsigned(const void * from) {
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(load_four(from)))));
}
inline Floats load_signed(const void * from) {
    return to_floats(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load_four(from))))));
}
inline void store_floats(float * to, Floats x) { vst1q_f32(to, x); }

inline float highest(const float * x) {
    Floats top = vabsq_f32(vld1q_f32(x));
    for (int i = 4; i < BLOCK_SIZE; i += 4) {
        top = vmaxq_f32(top, vabsq_f32(vld1q_f32(x + i)));
    }
    return vmaxvq_f32(top);
}
// Round 16 values times `factor` to bytes; returns the sum of the bytes.
inline int32_t round_half(const float * x, float factor, int8_t * to) {
    Ints q[4];
    for (int i = 0; i < 4; ++i) {
        q[i] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + 4*i), factor));
    }
    const int16x8_t a = vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1]));
    const int16x8_t b = vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3]));
    vst1q_s8(to, vcombine_s8(vmovn_s16(a), vmovn_s16(b)));
    return vaddlvq_s16(vaddq_s16(a, b));
}

// Products of signed bytes. Quants below 128 need no change.
template <class F> constexpr bool IS_SIGNED = F::BITS == 8 || F::CODEBOOK;

template <class F> struct Dot {
    Ints sum;

    template <int V> inline void add(int, Ints weights, Ints quants) {
        sum = vdotq_laneq_s32(sum, vreinterpretq_s8_s32(weights), vreinterpretq_s8_s32(quants), V);
    }
};

} // namespace tokenstream
