/* Replaces _mm_pause in the C sources with a pause that yields the processor from time to time.
 *
 * ggml's threads spin at a barrier after every tensor, about 500 times a token, without a limit. When another
 * process needs a core, the spinning threads use the time slices of the one thread that the others wait for: two
 * servers on two cores then prefill at a quarter of their speed each instead of half. This pause calls sched_yield
 * every 1,024 times, about 40 microseconds: longer than any barrier between running threads takes.
 * llama_cpp.cmake forces this file into every C source with -include. */
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
