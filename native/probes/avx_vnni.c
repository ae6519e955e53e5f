#include "probe.h"

int main(void) {
    const struct dot_product d = make_dot_product();
    int sums[8];
    const __m256i a = _mm256_loadu_si256((const __m256i *)d.a);
    const __m256i b = _mm256_loadu_si256((const __m256i *)d.b);
    _mm256_storeu_si256((__m256i *)sums, _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), a, b));
    return verdict(memcmp(sums, d.sums, sizeof sums) == 0);
}
