/* AMX tiles and int8 products, in three steps that can each fail on their own: the kernel's permission to use
 * the tile registers, a _tile_loadconfig that loads all 64 bytes it is given, and a product.
 *
 * Older GCCs declare that _tile_loadconfig reads 8 bytes only (GCC bug 114098): their optimizer drops the stores to
 * the other 56, and ldtilecfg faults on what lies there. The configuration is therefore filled in a function of its
 * own and loaded from its stack, as ggml does. */
#include "probe.h"
#include <sys/syscall.h>
#include <unistd.h>

#define REQUEST_PERMISSION 0x1023 /* ARCH_REQ_XCOMP_PERM */
#define TILE_DATA 18              /* XFEATURE_XTILEDATA */

struct tile_config {
    unsigned char palette, start_row, reserved[14];
    unsigned short bytes_per_row[16];
    unsigned char rows[16];
};

/* Tile 0 is one row of results and tile 1 one row of factors; the others are whole. */
static int rows_of(int tile) {
    return tile < 2 ? 1 : seed + 13;
}

static __attribute__((noinline)) void configure(void) {
    struct tile_config config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int tile = 0; tile < 8; tile++) {
        config.rows[tile] = (unsigned char)rows_of(tile);
        config.bytes_per_row[tile] = 64;
    }
    _tile_loadconfig(&config);
}

static int configured(void) {
    struct tile_config loaded;
    memset(&loaded, 0, sizeof loaded);
    __asm__ volatile("sttilecfg %0" : "=m"(loaded));
    int right = loaded.palette == 1;
    for (int tile = 0; tile < 8; tile++) {
        right &= loaded.rows[tile] == rows_of(tile) && loaded.bytes_per_row[tile] == 64;
    }
    return right;
}

static int multiplies(void) {
    const struct dot_product d = make_dot_product();
    signed char columns[16][64];
    int results[16], whole = 0, right = 1;
    memset(results, 0, sizeof results);
    /* All 16 columns of the second factor are the same vector, so that each result is the whole dot product. */
    for (int group = 0; group < 16; group++) {
        whole += d.sums[group];
        for (int column = 0; column < 16; column++) memcpy(columns[group] + 4 * column, d.b + 4 * group, 4);
    }
    _tile_zero(0);
    _tile_loadd(1, d.a, 64);
    _tile_loadd(2, columns, 64);
    _tile_dpbusd(0, 1, 2);
    _tile_stored(0, results, 64);
    for (int column = 0; column < 16; column++) right &= results[column] == whole;
    return right;
}

int main(void) {
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) {
        puts("the kernel does not grant the tile registers");
        return 1;
    }
    configure();
    if (!configured()) {
        puts("_tile_loadconfig loads another configuration than it is given");
        return 1;
    }
    return verdict(multiplies());
}
