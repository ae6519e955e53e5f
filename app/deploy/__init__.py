"""Tokenstream on clusters."""

import os

from app.fit import builds

# Before any module of this package loads the native library.
builds.choose(os.environ.get("NATIVE_BUILD") or "auto")
