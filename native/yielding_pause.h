/* Replaces _mm_pause in the C sources: every 1,024th call also yields the processor.
 *
 * ggml's threads spin at a barrier after every tensor, about 500 times per token, without a limit. If another
 * process needs a core, spinning threads delay the thread that all wait for. Two servers on two cores then prefill
 * at a quarter of their speed instead of half. 1,024 calls take about 40 microseconds, longer than any barrier
 * between running threads. llama_cpp.cmake forces this file into every C source with -include. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* must precede every header; ggml's sources define it too */
#endif
#include <immintrin.h>
#include <sched.h>
static inline void yielding_pause(void) {
    static __thread unsigned spins;
    _mm_pause();
    if ((++spins & 1023) == 0) {
        sched_yield();
    }
}
#define _mm_pause yielding_pause
#endif
