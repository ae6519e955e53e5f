/* Both widths used by ggml: 512 bits, and 256 bits with AVX-512VL. */
#include "probe.h"

int main(void) {
    const struct dot_product d = make_dot_product();
    int wide[16], narrow[8];
    const __m512i a = _mm512_loadu_si512(d.a);
    const __m512i b = _mm512_loadu_si512(d.b);
    _mm512_storeu_si512(wide, _mm512_dpbusd_epi32(_mm512_setzero_si512(), a, b));
    _mm256_storeu_si256((__m256i *)narrow, _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm512_castsi512_si256(a),
                                                               _mm512_castsi512_si256(b)));
    return verdict(memcmp(wide, d.sums, sizeof wide) == 0 && memcmp(narrow, d.sums, sizeof narrow) == 0);
}
