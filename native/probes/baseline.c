/* Nothing but plain arithmetic: whether programs of this compiler run here at all. */
#include "probe.h"

int main(void) {
    return verdict(seed * 2 == 6);
}
