/* Plain arithmetic: do compiled programs run on this machine? */
#include "probe.h"

int main(void) {
    return verdict(seed * 2 == 6);
}
