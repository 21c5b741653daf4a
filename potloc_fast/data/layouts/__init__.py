"""The layouts of data sets on disk, one file each. A layout is a function that returns a `Dataset`."""

from __future__ import annotations

from collections.abc import Callable

from potloc_fast.data.layouts.hapt import load_hapt
from potloc_fast.data.layouts.lacp import load_lacp
from potloc_fast.data.layouts.synthetic import load_synthetic
from potloc_fast.data.recording import Dataset

LAYOUTS: dict[str, Callable[..., Dataset]] = {"hapt": load_hapt, "lacp": load_lacp, "synthetic": load_synthetic}
