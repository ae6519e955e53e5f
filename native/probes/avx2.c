#include "probe.h"

int main(void) {
    const struct dot_product d = make_dot_product();
    int sums[8];
    int right = 1;
    for (int half = 0; half < 2; half++) {
        const __m256i a = _mm256_loadu_si256((const __m256i *)(d.a + 32 * half));
        const __m256i b = _mm256_loadu_si256((const __m256i *)(d.b + 32 * half));
        const __m256i low = _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(a)),
                                              _mm256_cvtepi8_epi16(_mm256_castsi256_si128(b)));
        const __m256i high = _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm256_extracti128_si256(a, 1)),
                                               _mm256_cvtepi8_epi16(_mm256_extracti128_si256(b, 1)));
        /* hadd works within 128-bit lanes: restore the order of its pairs of sums. */
        const __m256i ordered = _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xD8);
        _mm256_storeu_si256((__m256i *)sums, ordered);
        right &= memcmp(sums, d.sums + 8 * half, sizeof sums) == 0;
    }
    return verdict(right);
}
