/* SSSE3, SSE4.1 and SSE4.2: the sets of -msse4.2. */
#include "probe.h"

int main(void) {
    const __m128i compared = _mm_cmpgt_epi64(_mm_set_epi64x(seed, seed + 1), _mm_set_epi64x(seed + 1, seed));
    const __m128i product = _mm_mullo_epi32(_mm_set1_epi32(seed), _mm_set1_epi32(seed + 4));
    const __m128i reversed = _mm_shuffle_epi8(_mm_set1_epi32(seed), _mm_set1_epi32(0x00010203));
    return verdict(_mm_extract_epi64(compared, 0) == -1 && _mm_extract_epi64(compared, 1) == 0 &&
                   _mm_extract_epi32(product, 2) == 21 && _mm_extract_epi32(reversed, 1) == 0x03000000);
}
