/* AMX tiles and int8 products. Three steps can fail: the kernel's permission for the tile registers, a
 * _tile_loadconfig that loads all 64 bytes, and a product.
 *
 * Older GCCs declare that _tile_loadconfig reads 8 bytes (GCC bug 114098). Their optimizer drops the stores to the
 * other 56 bytes, and ldtilecfg faults. To expose that, the configuration is a local variable of a separate
 * function, as in ggml. */
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

/* Tile 0: one row of results. Tile 1: one row of factors. Other tiles: all 16 rows. */
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
    /* All columns of the second factor are the same vector: each result is the complete dot product. */
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
        puts("the kernel denies access to the tile registers");
        return 1;
    }
    configure();
    if (!configured()) {
        puts("_tile_loadconfig loads a wrong configuration");
        return 1;
    }
    return verdict(multiplies());
}
