"""Large buffers that are freed leave the process."""

from __future__ import annotations

import subprocess
import sys

# A process of its own: what is resident here depends on every test before.
_PROGRAM = """
import os
import numpy as np
from app.engine.llama.native import start_backend

def resident_megabytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

start_backend()
before = resident_megabytes()
for _ in range(4):
    buffers = [np.ones(20_000_000, np.uint8) for _ in range(3)]
    assert resident_megabytes() - before > 55
    # What is allocated later, and stays, must not hold what lies below it.
    keep = [np.ones(100_000, np.uint8)]
    del buffers
print(resident_megabytes() - before)
"""


def test_saved_sequences_leave_no_holes_behind() -> None:
    result = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)

    assert float(result.stdout) < 2
