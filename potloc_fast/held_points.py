"""Which points each proposal holds."""

from __future__ import annotations

import numpy as np

from potloc_fast.compiled import compiled


@compiled
def held_points(proposal_group, start, end, group, time):  # type: ignore[no-untyped-def]
    """Find the points `[first, last)` that each proposal holds, among points sorted by group, then time: int64[N] x 2.

    The proposals of a group mostly follow each other, so that most of them look among a few points only.
    """
    first, last = np.zeros((2, len(start)), dtype=np.int64)
    current, low, high = -1, 0, 0
    for j in range(len(start)):
        if proposal_group[j] != current:
            current = proposal_group[j]
            low = _bisect(group, current, False, 0, len(group))
            high = _bisect(group, current, True, low, len(group))
        first[j] = _bisect(time, start[j], False, low, high)
        last[j] = _bisect(time, end[j], True, first[j], high)
    return first, last


@compiled
def _bisect(values, value, after, low, high):  # type: ignore[no-untyped-def]
    """Find the first of the ascending `values[low:high]` that is >= `value`, or > if `after`: its index, or `high`."""
    while low < high:
        middle = (low + high) >> 1
        if values[middle] < value or (after and values[middle] == value):
            low = middle + 1
        else:
            high = middle
    return low
