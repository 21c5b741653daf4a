"""Faults on purpose: what `make nightly` runs at length, and the tests for a few minutes."""

from __future__ import annotations

import sys
from pathlib import Path

# `python -m` puts this repository first on the path. What is to be tested is the installed package, unless the
# extension was built in place.
_ROOT = Path(__file__).resolve().parents[2]
if not any((_ROOT / "potloc_fast").glob("_C.*.so")):
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != _ROOT]
