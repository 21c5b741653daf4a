"""Where detections begin and end too early or too late, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from potloc_fast.evaluation.segments import Segments


@dataclass(frozen=True)
class Shift:
    """How far a boundary is off, detected minus true, in seconds: above 0 it is too late.

    Attributes:
        median: half of the boundaries are off by less, half by more.
        low: the first quartile.
        high: the third quartile; half of the boundaries are off by `low` to `high`.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class BoundaryShift:
    """How far the boundaries of found instances are off.

    Attributes:
        found: the number of instances that a detection took at tIoU 0.1.
        start: of their starts; None where none was found.
        end: of their ends, likewise.
    """

    found: int
    start: Shift | None
    end: Shift | None


@dataclass(frozen=True)
class BoundaryShifts:
    """In which direction boundaries are off, and by how much.

    An instance is compared with the detection that took it at tIoU 0.1 in mAP: of those that see it, the one with the
    best score. So boundaries count that a stricter threshold takes for errors, and only one detection an instance.

    Attributes:
        overall: of all instances.
        per_class: of the instances of each class.
    """

    overall: BoundaryShift
    per_class: dict[str, BoundaryShift]


def boundary_shifts(ranked: Segments, truth: Segments, taken: NDArray[np.int64]) -> BoundaryShifts:
    """Measure how far the boundaries of found instances are off.

    Args:
        ranked: aligned detections in the order of `rank`.
        truth: the instances.
        taken: int64[N], the instance that each detection took at tIoU 0.1, -1 where none (see `match`).

    Returns:
        The shifts.
    """
    hit = taken >= 0
    own = taken[hit]
    label = truth.label[own]
    start, end = ranked.start_sec[hit] - truth.start_sec[own], ranked.end_sec[hit] - truth.end_sec[own]
    return BoundaryShifts(
        overall=_shift(start, end),
        per_class={name: _shift(start[label == c], end[label == c]) for c, name in enumerate(truth.labels)},
    )


def _shift(start: NDArray[np.float64], end: NDArray[np.float64]) -> BoundaryShift:
    if not len(start):
        return BoundaryShift(0, None, None)
    quartiles = np.quantile([start, end], (0.5, 0.25, 0.75), axis=1).T.tolist()
    return BoundaryShift(len(start), *(Shift(*row) for row in quartiles))
