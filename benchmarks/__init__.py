"""What the operators and the steps around them cost, beside what else one would use: `python -m benchmarks`."""

from __future__ import annotations

import sys
from pathlib import Path

# `python -m` puts this repository first on the path. What is to be measured is the installed package, unless the
# extension was built in place.
_ROOT = Path(__file__).resolve().parents[1]
if not any((_ROOT / "potloc_fast").glob("_C.*.so")):
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != _ROOT]
