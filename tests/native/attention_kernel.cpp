// attention_kernel.h as a shared library for tests, compiled with the flags of one instruction set.

#include "../../native/attention_kernel.h"

// q, mask and out: n_rows x head_size, n_rows x n_keys (or null), n_rows x head_size. k and v: n_keys x head_size.
extern "C" int attend(const float * q, const uint16_t * k, const uint16_t * v, const uint16_t * mask, float * out,
                      int n_rows, int n_keys, int head_size, float scale) {
    tokenstream::Rows rows{};
    for (int r = 0; r < n_rows; ++r) {
        rows.q[r] = q + r*head_size;
        rows.mask[r] = mask ? mask + r*n_keys : nullptr;
        rows.out[r] = out + r*head_size;
    }
    const size_t stride = head_size*sizeof(uint16_t);
    tokenstream::attend(rows, n_rows, {(const char *) k, (const char *) v, stride, stride, n_keys}, head_size, scale);
    return tokenstream::WIDTH;
}
