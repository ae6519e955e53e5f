"""Memory of freed large buffers and of a loaded model's file returns to the operating system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import MODEL, ROOT

# A separate process: resident memory here depends on earlier tests.
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
    # A later allocation that stays must not keep the memory below it resident.
    keep = [np.ones(100_000, np.uint8)]
    del buffers
print(resident_megabytes() - before)
"""


def test_saved_sequences_leave_no_holes_behind() -> None:
    result = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)

    assert float(result.stdout) < 2


_LOADING = """
import re
import sys
from pathlib import Path
from app.engine.llama import Batch, Context, KVOptions, Model

def resident_of_file(path):
    smaps = Path("/proc/self/smaps").read_text()
    sizes = re.findall(rf"{re.escape(path)}\\n(?:.*\\n)*?Rss: +([0-9]+) kB", smaps)
    assert sizes, "it is not mapped"
    return sum(map(int, sizes)) * 1024

def logits(model):
    context = Context(
        model, n_ctx=256, n_sequences=1, n_batch=256, n_outputs=1, n_threads=1, kv=KVOptions()
    )
    batch = Batch(256)
    batch.add([*range(1000, 1020)], 0, 0, n_outputs=1)
    context.decode(batch)
    return context.logits[0].copy()

model = Model(Path(sys.argv[1]))
loaded = resident_of_file(sys.argv[1])
first = logits(model)
assert (first == logits(model)).all() and first.std() > 0.5
print(loaded)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are dropped on Linux only")
def test_a_models_file_leaves_memory_when_it_is_loaded() -> None:
    path = MODEL.resolve()
    result = subprocess.run(
        [sys.executable, "-c", _LOADING, path], capture_output=True, text=True, check=False, cwd=ROOT
    )

    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < path.stat().st_size / 10
