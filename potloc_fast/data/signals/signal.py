"""What a file of samples holds, before it is brought to a common rate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
