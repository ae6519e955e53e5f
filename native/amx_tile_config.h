/* Replaces _tile_loadconfig, with the correct size of its operand: ldtilecfg reads 64 bytes.
 *
 * Older GCCs declare 8 bytes (GCC bug 114098). Their optimizer drops the stores to the other 56, and the library
 * crashes with SIGSEGV in its first matrix product. llama_cpp.cmake forces this file into the C++ sources with
 * -include if probes/amx.c fails without it and passes with it. */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char(*)[64])(config)))
#endif
