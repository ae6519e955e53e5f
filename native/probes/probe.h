/* What the probes share. A probe computes something small with one instruction set, compares it with plain
 * arithmetic and prints "right"; anything else it prints is the reason for a no. The sources are C and C++. */
#pragma once
#include <immintrin.h>
#include <stdio.h>
#include <string.h>

/* Read at run time, so that no compiler can work the answer out itself and drop the instructions. */
static volatile int seed = 3;

static inline int verdict(int right) {
    puts(right ? "right" : "wrong result");
    return !right;
}

/* 64 unsigned and 64 signed bytes, and the sums of their products in groups of four: what VNNI and AMX multiply. */
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
