/* The five sets of GGML_AVX512: F, CD, VL, DQ and BW. */
#include "probe.h"

int main(void) {
    const __m512i steps = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(steps, _mm512_set1_epi32(seed)));
    const __m512i zeros = _mm512_lzcnt_epi32(_mm512_set1_epi32(seed));
    const __m256i masked = _mm256_mask_add_epi32(_mm256_setzero_si256(), 0x0F, _mm256_set1_epi32(seed),
                                                 _mm256_set1_epi32(seed));
    const __m512i products = _mm512_mullo_epi64(_mm512_set1_epi64(seed), _mm512_set1_epi64(1LL << 40));
    const __mmask64 equal = _mm512_cmpeq_epi8_mask(_mm512_add_epi8(_mm512_set1_epi8((char)seed), _mm512_set1_epi8(1)),
                                                   _mm512_set1_epi8((char)(seed + 1)));
    int f_cd[16], vl[8];
    long long dq[8];
    _mm512_storeu_si512(f_cd, zeros);
    _mm256_storeu_si256((__m256i *)vl, masked);
    _mm512_storeu_si512(dq, products);
    return verdict(sum == 120 + 16 * seed && f_cd[7] == 30 && vl[3] == 2 * seed && vl[4] == 0 &&
                   dq[5] == (long long)seed << 40 && equal == ~(__mmask64)0);
}
