/* Common parts of the probes. A probe computes a small result with one instruction set and compares it with plain
 * arithmetic. It prints "right", or the reason against the set. The sources compile as C and as C++. */
#pragma once
#include <immintrin.h>
#include <stdio.h>
#include <string.h>

/* Volatile: otherwise compilers fold the results at compile time and drop the instructions. */
static volatile int seed = 3;

static inline int verdict(int right) {
    puts(right ? "right" : "wrong result");
    return !right;
}

/* Operands and result of VNNI and AMX: unsigned and signed bytes, and the sums of their products in groups of four. */
struct dot_product {
    unsigned char a[64];
    signed char b[64];
    int sums[16];
};

static inline struct dot_product make_dot_product(void) {
    struct dot_product d;
    memset(&d, 0, sizeof d);
    for (int i = 0; i < 64; i++) {
        d.a[i] = (unsigned char)(seed * 40 + i);
        d.b[i] = (signed char)(i % 2 ? -seed - i : seed + i);
        d.sums[i / 4] += d.a[i] * d.b[i];
    }
    return d;
}
