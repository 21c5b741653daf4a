"""What a file of samples holds, before it is brought to a common rate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potloc_fast.data.signals.windows import Samples


@dataclass(frozen=True, eq=False)
class Signal:
    """Channels that were sampled together.

    Attributes:
        path: the file.
        columns: the name of each channel.
        samples: `[N, C]`, in memory or read block by block.
        rate_hz: samples a second, where the file says it.
        time_sec: when each sample was taken, `[N]`, never decreasing, where the file has time stamps.
    """

    path: Path
    columns: tuple[str, ...]
    samples: Samples
    rate_hz: float | None = None
    time_sec: NDArray[np.float64] | None = None


def bridge(table: NDArray[Any]) -> NDArray[np.float64]:
    """Values with those that are missing (NaN) on straight lines between their neighbours in their column."""
    values = np.array(table, dtype=np.float64)
    for column in values.T:
        known = np.flatnonzero(~np.isnan(column))
        if 0 < len(known) < len(column):
            column[:] = np.interp(np.arange(len(column)), known, column[known])
    return values
