"""The package ``tokenstream`` of a wheel. Its folder contains the folders of the repository.

A top-level package ``app`` in site-packages would hide the ``app`` of another project, or be hidden by it. So
only the process of the command ``tokenstream`` can import it.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """Run the command line and return its exit status."""
    sys.path.insert(0, str(Path(__file__).parent))
    from app.__main__ import main as run

    return run()
