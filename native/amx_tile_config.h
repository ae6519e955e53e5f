/* A _tile_loadconfig that tells the optimizer the truth: ldtilecfg reads 64 bytes.
 *
 * Older GCCs declare 8 (GCC bug 114098), drop the stores to the other 56, and the library dies of SIGSEGV in its
 * first matrix product. Forced into the C++ sources with -include, and only where probes/amx.c shows the need. */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char(*)[64])(config)))
#endif
