"""A loaded model and its file."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import MODEL, ROOT

_LOADING = """
import re
import sys
from pathlib import Path
from app.engine.llama import Batch, Context, KVOptions, Model

def resident_of_file(path):
    smaps = Path("/proc/self/smaps").read_text()
    sizes = re.findall(rf"{re.escape(path)}\\n(?:.*\\n)*?Rss: +([0-9]+) kB", smaps)
    assert sizes, "the file is not mapped"
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
def test_the_file_of_a_loaded_model_is_not_resident() -> None:
    path = MODEL.resolve()
    result = subprocess.run(
        [sys.executable, "-c", _LOADING, path], capture_output=True, text=True, check=False, cwd=ROOT
    )

    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < path.stat().st_size / 10
