#include "probe.h"

int main(void) {
    float back[8];
    const __m256 steps = _mm256_set_ps(8, 7, 6, 5, 4, 3, 2, 1);
    const __m256 scaled = _mm256_mul_ps(steps, _mm256_set1_ps((float)seed / 2));
    _mm256_storeu_ps(back, _mm256_cvtph_ps(_mm256_cvtps_ph(scaled, 0)));
    int right = 1;
    for (int i = 0; i < 8; i++) right &= back[i] == (float)(i + 1) * (float)seed / 2;
    return verdict(right);
}
