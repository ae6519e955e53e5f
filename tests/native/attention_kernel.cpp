// attention_kernel.h as a shared library for tests, compiled with the flags of one instruction set.

#include "../../native/attention_kernel.h"

// q, mask and out: n_rows x head_size, n_rows x n_keys (or null), n_rows x head_size. k and v: n_keys x head_size.
// options: scale, cap, whether k and v are Q8_0.
extern "C" int64_t attend(const float * q, const uint16_t * k, const uint16_t * v, const uint16_t * mask, float * out,
                          int64_t n_rows, int64_t n_keys, int64_t head_size, const float * options) {
    static tokenstream::Head head;
    head.k = (const char *) k, head.v = (const char *) v;
    head.is_packed = options[2] != 0.0f;
    head.k_stride = head.v_stride = head.is_packed ? head_size/32*sizeof(tokenstream::Block) : head_size*sizeof(uint16_t);
    head.n_keys = n_keys, head.size = head_size, head.n_rows = n_rows, head.cap = options[1];
    for (int r = 0; r < n_rows; ++r) {
        head.rows[r].q = q + r*head_size;
        head.rows[r].mask = mask ? mask + r*n_keys : nullptr;
        head.rows[r].out = out + r*head_size;
        head.rows[r].slope = 1.0f, head.rows[r].sink = -INFINITY;
        tokenstream::start(head.rows[r]);
    }
    for (int64_t begin = 0; begin < n_keys; begin += tokenstream::PART_KEYS) {
        tokenstream::attend(&head, 1, begin, options[0]);
    }
    for (int r = 0; r < n_rows; ++r) {
        tokenstream::finish(head.rows[r], head_size);
    }
    return tokenstream::WIDTH;
}
