/* An _mm_pause that gives the processor up now and then.
 *
 * ggml's threads wait for each other at a barrier after every tensor, some 500 times a token, spinning without
 * end. When another process needs a core, the thread that everybody waits for may be the one that does not
 * run, while those that spin use up its turns: two servers on two cores then get a quarter of their prefill
 * speed each instead of half. A spin that lasts longer than a barrier between running threads ever does (1,024
 * pauses are some 40 microseconds) therefore yields. Forced into the C sources with -include. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* before any header, as ggml's sources have it */
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
