#include "probe.h"

int main(void) {
    unsigned char order[64], source[64], result[64];
    for (int i = 0; i < 64; i++) {
        source[i] = (unsigned char)(i * seed);
        order[i] = (unsigned char)(63 - i);
    }
    const __m512i permuted = _mm512_permutexvar_epi8(_mm512_loadu_si512(order), _mm512_loadu_si512(source));
    _mm512_storeu_si512(result, permuted);
    int right = 1;
    for (int i = 0; i < 64; i++) right &= result[i] == source[63 - i];
    return verdict(right);
}
