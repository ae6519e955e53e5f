#include "probe.h"

int main(void) {
    float sums[16];
    const __m512 value = _mm512_set1_ps((float)seed);
    const __m512bh pairs = _mm512_cvtne2ps_pbh(value, value);
    _mm512_storeu_ps(sums, _mm512_dpbf16_ps(value, pairs, pairs));
    int right = 1;
    for (int i = 0; i < 16; i++) right &= sums[i] == (float)(seed + 2 * seed * seed);
    return verdict(right);
}
