#include "probe.h"

int main(void) {
    float sums[8];
    const __m256 steps = _mm256_set_ps(8, 7, 6, 5, 4, 3, 2, 1);
    const __m256 factor = _mm256_set1_ps((float)seed);
    _mm256_storeu_ps(sums, _mm256_fmadd_ps(steps, factor, factor));
    int right = 1;
    for (int i = 0; i < 8; i++) right &= sums[i] == (float)((i + 2) * seed);
    return verdict(right);
}
