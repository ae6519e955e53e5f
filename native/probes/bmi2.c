#include "probe.h"

int main(void) {
    const unsigned spread = _pdep_u32((unsigned)seed, 0x11110000u);
    return verdict(spread == 0x00110000u && _pext_u32(spread, 0x11110000u) == (unsigned)seed);
}
